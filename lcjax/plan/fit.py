"""Before the first step: chooses settings with which it fits this GPU, or raises an error.

The error says what would help.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from lcjax.config import LlamaConfig
from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError
from lcjax.model import ModelSettings
from lcjax.plan.choosing.budget import Budget
from lcjax.plan.choosing.choose import choose, possible_candidates
from lcjax.plan.choosing.search import LENGTH_STEP
from lcjax.plan.choosing.tuner import Trial, Tuning
from lcjax.plan.compiling.compile import step_memory
from lcjax.plan.compiling.memory import Memory, gib
from lcjax.plan.compiling.parameters import abstract_params
from lcjax.plan.compiling.run import Run
from lcjax.plan.remedies import FOUR_BITS, Estimated, remedies
from lcjax.step import with_attention


@dataclasses.dataclass(frozen=True)
class Fit:
    """The settings with which a run fits, the memory of its step, and all settings tried."""

    settings: ModelSettings
    memory: Memory
    tuning: Tuning

    def describe(self, budget: Budget) -> str:
        """One line for the user."""
        tried = sum(trial.memory is not None for trial in self.tuning.trials)
        host = f" and {gib(self.memory.host_bytes)} of pinned host memory" if self.memory.host_bytes else ""
        return (
            f"memory: {self.tuning.chosen} takes {gib(self.memory.device_bytes)} of {gib(budget.device)} on the GPU{host}"
            f" ({tried} compiled)"
        )


def fit(
    run: Run,
    settings: ModelSettings,
    budget: Budget,
    *,
    compiler: Callable[[jax.stages.Lowered], jax.stages.Compiled] = jax.stages.Lowered.compile,
) -> Fit:
    """The fastest settings with which the training step fits.

    All settings are tried that `settings.requested` leaves open. If it leaves attention open, all
    are tried again with slower implementations, which need less memory.

    Args:
      run: the run, its weights already placed as the step needs them.
      settings: the requested settings.
      budget: the memory that is available.
      compiler: called only for a program whose memory is not in the cache yet (see
        `lcjax.plan.compiling.compile_cache`).

    Raises:
      InputError: the step does not fit with any of these settings. The message gives its memory and
        what would help.
    """

    def measure(settings: ModelSettings) -> Memory | None:
        try:
            return step_memory(run, settings, compiler)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            # XLA runs kernels while it compiles; there was not enough memory for their arguments.
            return None

    tuning = choose(run, settings, budget, measure)
    [chosen] = [trial for trial in tuning.trials if trial.candidate == tuning.chosen]
    if chosen.memory is not None and chosen.fits:
        return Fit(tuning.chosen.applied(settings), chosen.memory, tuning)
    if slower := settings.execution.slower_attention:
        return fit(run, with_attention(settings, slower[0]), budget, compiler=compiler)
    raise _refusal(run, settings, budget, chosen)


def pinned_at_most(config: LlamaConfig, settings: ModelSettings, arguments: TrainingArguments, limit: int) -> int:
    """The most bytes that a run may pin in host memory, over all settings that pin at most `limit`.

    0 if all settings need more; `fit` then raises an error. Does not start JAX's devices.
    """
    params = abstract_params(config, settings.lora, None)
    run = Run(config, params, arguments, settings.lora, embeddings_may_be_on_host=settings.lora is not None)
    found = possible_candidates(run, settings, Budget(device=0, host=limit))
    sizes = [run.pinned_bytes(candidate.applied(settings)) for candidate in found]
    return max((size for size in sizes if size <= limit), default=0)


def _refusal(run: Run, settings: ModelSettings, budget: Budget, trial: Trial) -> InputError:
    """The error for a step that does not fit, with the three cheapest remedies."""
    tokens, memory = settings.max_seq_length, trial.memory
    if memory is None:
        return InputError(
            f"a step of {tokens:,} tokens is too large for {gib(budget.device)} on the GPU even to be compiled "
            f"({trial.candidate}); use {'' if run.quantized else f'{FOUR_BITS}, '}a smaller --max-seq-length or a "
            "GPU with more memory"
        )
    host = "any amount" if budget.host is None else gib(budget.host)
    cheapest = list(
        remedies(run, settings, Estimated(tokens, memory, budget, LENGTH_STEP * settings.execution.mesh.parts))
    )[:3]
    return InputError(
        f"a step of {tokens:,} tokens takes {gib(memory.device_bytes)} of {gib(budget.device)} on the GPU and "
        f"{gib(memory.host_bytes)} of {host} of host memory ({trial.candidate}); use {', or '.join(cheapest)}"
    )
