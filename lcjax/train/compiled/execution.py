"""How a run computes: its compiled programs and the form of its step.

Both are chosen at the start of the run and saved in checkpoints.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lcjax.config import parse_memory
from lcjax.config.training import TrainingArguments
from lcjax.data import PackingPlan
from lcjax.errors import InputError
from lcjax.model import Llama, ModelSettings
from lcjax.ops.attention.registry import takes_segments
from lcjax.step import with_attention, with_request
from lcjax.train.arguments import RunArguments
from lcjax.train.compiled.builder import builder
from lcjax.train.compiled.programs import Programs, digest_of, programs_folder


@dataclasses.dataclass(frozen=True)
class SavedExecution:
    """What changes only the last bits of a step's numbers on a GPU, not its mathematics.

    Attributes:
      programs: the id of the run's folder of compiled programs.
      builder: what they were compiled with and for.
      policy, memory, loss_chunk: the form of the step that was chosen if the arguments said "auto",
      as in `ModelSettings`; None on a CPU, where nothing is chosen.
      attention: the implementation of attention; None as well.
    """

    programs: str
    builder: dict[str, str]
    policy: str | None = None
    memory: str | None = None
    loss_chunk: int | None = None
    attention: str | None = None

    @classmethod
    def of(cls, programs: Programs, fitted: ModelSettings | None) -> SavedExecution:
        if fitted is None:
            return cls(programs.run, programs.builder)
        form, loss_chunk = fitted.form, fitted.execution.loss_chunk
        memory, attention = str(form.memory or "none"), fitted.execution.attention
        return cls(programs.run, programs.builder, form.policy, memory, loss_chunk, attention)

    def applied(self, settings: ModelSettings) -> ModelSettings:
        """The settings with the run's original form of the step, unless the user set another."""
        if self.attention in settings.execution.slower_attention:
            settings = with_attention(settings, self.attention)
        requested = settings.requested
        if self.policy is None or self.memory is None or not requested.leaves_memory_open:
            return settings
        if not requested.leaves_policy_open and requested.use_gradient_checkpointing != self.policy:
            return settings
        form = {"use_gradient_checkpointing": self.policy, "memory": parse_memory(self.memory)}
        return with_request(settings, **form, loss_chunk=self.loss_chunk)

    @classmethod
    def of_json(cls, value: Any) -> SavedExecution | None:
        """A SavedExecution from its JSON; None for a checkpoint that has none."""
        return cls(**value) if value else None


def settings_for_rows(settings: ModelSettings, plan: PackingPlan, part: str) -> ModelSettings:
    """A model's settings for the rows of a plan.

    Args:
      part: what the plan packs, for the error message.

    Raises:
      InputError: rows have several documents, and attention cannot separate them.
    """
    attention = settings.execution.attention
    if not plan.one_document_a_row and not takes_segments(attention):
        raise InputError(
            f"attention={attention!r} takes one document per row, but rows of the {part} data have "
            "several; use attention='pallas' or attention='xla', or longer documents"
        )
    return dataclasses.replace(settings, one_document_a_row=plan.one_document_a_row)


def open_adapter_programs(model: Llama, arguments: RunArguments) -> Programs:
    """The compiled programs that make a new adapter; all runs with the same adapter share them.

    They compute random numbers from integers, so their bits do not depend on how they are compiled.
    """
    shape = digest_of([dataclasses.asdict(model.config), arguments.lora_r, arguments.target_modules])
    built = builder()
    base = Path(arguments.programs_dir) if arguments.programs_dir else programs_folder()
    try:
        return Programs.of_run(base, digest_of([shape, built])[:16], built, shape)
    except OSError as error:
        return Programs.not_stored(base, built, shape, str(error))


def open_programs(model: Llama, arguments: TrainingArguments, saved: SavedExecution | None) -> Programs:
    """The compiled programs of a new run, or of the resumed run whose execution is `saved`.

    Without `programs_dir`, a cache folder that cannot be written does not stop the run;
    `Programs.lost` reports it.

    Raises:
      InputError: `programs_dir` cannot be written.
    """
    settings = dataclasses.asdict(model.settings) | {"name_or_path": "", "adapter": ""}
    rows = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    shape = digest_of([dataclasses.asdict(model.config), settings, str(model.dtype), rows])
    base = Path(arguments.programs_dir) if arguments.programs_dir else programs_folder()
    try:
        if saved is None:
            return Programs.new(base, builder(), shape)
        return Programs.of_run(base, saved.programs, builder(), shape)
    except OSError as error:
        if arguments.programs_dir:
            raise InputError(
                f"--programs-dir {base} cannot be used ({error.strerror}); choose another folder"
            ) from None
        reason = f"compiled programs cannot be stored in {base} ({error.strerror}), choose a folder with --programs-dir"
        return Programs.not_stored(base, builder(), shape, reason)
