"""The training step of a run, compiled and measured: for the devices that are here, and for a GPU that is not."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from lcjax import step
from lcjax.model import ModelSettings
from lcjax.parallel.placement import abstract_like
from lcjax.plan.compiling.aot import compile_lowered, gpu_sharding, lowering_for
from lcjax.plan.compiling.compile_cache import cached_result
from lcjax.plan.compiling.hlo import Program
from lcjax.plan.compiling.memory import Memory, attention_scratch_bytes, measure
from lcjax.plan.compiling.offload import check_offload
from lcjax.plan.compiling.run import Run, Tree
from lcjax.plan.workload import Workload


@dataclasses.dataclass(frozen=True)
class LoweredStep:
    """A step for the devices on which its run's weights are; only its compilation is missing."""

    run: Run
    settings: ModelSettings
    sharding: Sharding
    state: step.TrainState
    frozen: Tree
    lowered: jax.stages.Lowered

    def memory(self, executable: jax.stages.Compiled, text: Callable[[], str] | None = None) -> Memory:
        """What the compiled step takes, its arguments included.

        `text` gives the optimized program, where it is known otherwise than from the executable.

        Raises:
          InputError: an array that was to be in host memory is not.
        """
        scratch_bytes = attention_scratch_bytes(self.run.config, self.settings, self.run.sequences)
        memory = measure(executable, self.state, self.frozen, scratch_bytes)
        if platform_of(self.sharding) != "cpu":  # whose memory is all the host's
            check_offload(self.run.host_arrays(self.settings), memory, text or (lambda: executable.as_text() or ""))
        return memory


def lower_step(run: Run, settings: ModelSettings, max_steps: int = 1) -> LoweredStep:
    """The very step that `lcjax.train` runs, on sequences of `settings.max_seq_length` tokens."""
    params = jax.tree.map(abstract_like, run.params)
    sharding = params["norm"]["weight"].sharding
    program = run.program(params, settings, max_steps)
    state = step.abstract_state(program.optimizer, program.trainable, sharding)
    shape = run.arguments.gradient_accumulation_steps, run.sequences, settings.max_seq_length
    batches = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for name in step.BATCH_KEYS}
    train_step = step.jit_train_step(program.objective, program.optimizer, platform_of(sharding))
    with lowering_for(sharding):
        lowered = train_step.lower(state, program.frozen, batches)
    return LoweredStep(run, settings, sharding, state, program.frozen, lowered)


def step_memory(
    run: Run, settings: ModelSettings, compiler: Callable[[jax.stages.Lowered], jax.stages.Compiled]
) -> Memory:
    """What one step takes. The compiler is asked only for a program that it was not asked for before.

    Raises:
      InputError: as `LoweredStep.memory`.
    """
    lowered_step = lower_step(run, settings)
    [kind] = {device.device_kind for device in lowered_step.sharding.device_set}
    digest = hashlib.sha256(lowered_step.lowered.as_text().encode()).hexdigest()
    return cached_result(
        {"device": kind, "program": digest},
        lambda content: Memory(**content),
        lambda: lowered_step.memory(compiler(lowered_step.lowered)),
    )


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What the compiler says of one step: its memory, its optimized program, and when which buffer is alive (XLA's report)."""

    memory: Memory
    program: Program
    live_ranges: str


def compile_step(workload: Workload, settings: ModelSettings) -> CompiledStep:
    """The step of a workload, one sequence long, compiled for its GPU.

    Raises:
      InputError: an unknown GPU, no compiler for it, or an array that was to be in host memory and is not.
    """
    sharding = gpu_sharding(workload.gpu, workload.gpus, workload.hosts)
    lowered_step = lower_step(Run.of(workload, sharding), settings)
    with tempfile.TemporaryDirectory() as folder:
        executable = compile_lowered(lowered_step.lowered, {"xla_dump_to": folder})
        # Both are of one moment: names change between it and `executable.as_text()`.
        text, live_ranges = (_dumped(folder, f"*gpu_after_optimizations{end}.txt") for end in ("", "-live-range"))
    return CompiledStep(lowered_step.memory(executable, lambda: text), Program(text), live_ranges)


def platform_of(sharding: Sharding) -> str:
    """What the devices of a sharding are: "cpu", or a name of GPUs."""
    return next(iter(sharding.device_set)).platform


def _dumped(folder: str, pattern: str) -> str:
    [path] = Path(folder).glob(pattern)
    return path.read_text(encoding="utf-8")
