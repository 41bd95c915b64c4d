"""The checkpoint of an earlier run that a new run starts from: its weights, and its optimizer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.config.rope import RopeScaling
from lcjax.config.rope_choice import describe_rope
from lcjax.config.run_record import as_json
from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError
from lcjax.model import Llama
from lcjax.train.checkpoints.checkpoint import Checkpoints
from lcjax.train.checkpoints.checksums import CHECKSUMS
from lcjax.train.checkpoints.resume import ResumePoint, named_point, refuse_damage
from lcjax.weights.peft import CONFIG_FILE

START_FROM = "--start-from"
# The fields of a config that may differ between two stages of a training.
_ROPE = ("rope_theta", "rope_scaling", "partial_rotary_factor", "max_position_embeddings")


@dataclasses.dataclass(frozen=True)
class Start:
    """A checkpoint that a new run starts from.

    Attributes:
      point: the checkpoint.
      optimizer_state: whether the run continues with the optimizer's state of the checkpoint.
      saved: the checkpoint's description of its run.
    """

    point: ResumePoint
    optimizer_state: bool
    saved: dict[str, Any]

    @property
    def optimizer_steps(self) -> int:
        """The steps that the optimizer's state has taken, in all stages; 0 for a new state."""
        return self.saved.get("origin", {}).get("optimizer_steps", 0) + self.point.step if self.optimizer_state else 0

    @property
    def lora(self) -> LoraConfig | None:
        """The config of the checkpoint's adapter; None if every weight was trained."""
        saved = self.saved["model"]["lora"]
        return None if saved is None else LoraConfig(**saved | {"target_modules": tuple(saved["target_modules"])})

    def with_its_rope(self, config: LlamaConfig) -> LlamaConfig:
        """The config with the RoPE and the context length of the checkpoint's model."""
        return with_saved_rope(config, self.saved)

    def fingerprint(self) -> str:
        """32 hexadecimal digits that depend on every byte of the checkpoint's files."""
        return json.loads((self.point.directory / str(self.point.step) / CHECKSUMS).read_bytes())["sha256"][:32]

    def compared(self, model: Llama, weights: str) -> list[str]:
        """What the user should know about the model of the run, compared with the checkpoint's.

        Args:
          model: as it is before the weights of the checkpoint replace its own.
          weights: the fingerprint of its base weights.

        Raises:
          InputError: the weights of the checkpoint are not those that the run trains.
        """
        self._refuse_other_model(model)
        before, lines = self.with_its_rope(model.config), []
        if model.settings.lora is not None and weights != self.saved["weights"]:
            lines.append(f"warning: the base weights are not those with which {self.point} was trained")
        if before != model.config:
            lines.append(f"RoPE was {describe_rope(before)} in {self.point}, and is now {describe_rope(model.config)}")
        return lines

    def _refuse_other_model(self, model: Llama) -> None:
        saved, lora = self.saved["model"], model.settings.lora
        now = as_json(dataclasses.asdict(model.config))
        for name in now.keys() - {*_ROPE}:
            if name in saved and saved[name] != now[name]:
                raise self._other(f"its model's {name} was {saved[name]!r} and is {now[name]!r}; give the same --model")
        if (self.lora is None) != (lora is None):
            trained = "every weight" if self.lora is None else "an adapter"
            raise self._other(f"it has {trained}, and this run trains {'an adapter' if lora else 'every weight'}")
        if lora is None and saved["dtype"] != str(model.dtype):
            raise self._other(f"--dtype was {saved['dtype']!r} and is {str(model.dtype)!r}; give the same")
        if lora is not None and self.lora is not None:
            own = dataclasses.replace(self.lora, lora_dropout=lora.lora_dropout)
            if lora != own:
                raise self._other(f"its adapter has {own}, and that of this run has {lora}; give the same")

    def _other(self, what: str) -> InputError:
        return InputError(f"--start-from {self.point} does not suit this run: {what}")


def find_start(arguments: TrainingArguments) -> Start | None:
    """The checkpoint that a new run starts from; its files are not verified yet.

    Raises:
      InputError: there is no such checkpoint, or its description is damaged.
    """
    path = arguments.start_from
    if path is None or arguments.resume_from_checkpoint is not None:
        return None
    if (path / CONFIG_FILE).exists():
        raise InputError(f"--start-from {path} is an adapter; give it with --adapter, or give a checkpoint")
    point = named_point(Path(path), START_FROM)
    try:
        start = Start(point, arguments.optimizer_state, Checkpoints(point.directory).run(point.step))
        _ = start.lora, start.saved["weights"], start.saved["arguments"], start.optimizer_steps
        return start
    except (InputError, TypeError, KeyError):
        refuse_damage(point, START_FROM)  # a better message, if damage is the cause
        raise


def with_saved_rope(config: LlamaConfig, saved: dict[str, Any]) -> LlamaConfig:
    """The config with the RoPE and the context length of a checkpoint's description."""
    model = saved["model"]
    scaling: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in model["rope_scaling"].items()
    }
    names = "rope_theta", "partial_rotary_factor", "max_position_embeddings"
    fields = {name: model[name] for name in names} | {"rope_scaling": RopeScaling(**scaling)}
    return dataclasses.replace(config, **fields)
