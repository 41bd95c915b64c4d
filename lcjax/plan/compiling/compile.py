"""Compiles a run's training step and measures its memory.

The step is for this machine's devices or for an absent GPU.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from lcjax import step
from lcjax.config.parallel.mesh import MeshShape
from lcjax.model import ModelSettings
from lcjax.parallel.devices import STEP, Devices
from lcjax.parallel.placement import abstract_like, with_spec
from lcjax.parallel.weights import divided
from lcjax.plan.compiling.aot import compile_lowered, gpu_sharding, lowering_for
from lcjax.plan.compiling.compile_cache import cached_result
from lcjax.plan.compiling.hlo import Program
from lcjax.plan.compiling.memory import Memory, attention_scratch_bytes, measure
from lcjax.plan.compiling.offload import check_offload
from lcjax.plan.compiling.run import Run, Tree
from lcjax.plan.workload import Workload


@dataclasses.dataclass(frozen=True)
class LoweredStep:
    """A step that is lowered, but not compiled, for the devices of its run's weights."""

    run: Run
    settings: ModelSettings
    sharding: Sharding
    state: step.TrainState
    frozen: Tree
    lowered: jax.stages.Lowered

    def memory(self, executable: jax.stages.Compiled, text: Callable[[], str] | None = None) -> Memory:
        """The memory of the compiled step, including its arguments.

        `text` returns the optimized program; None reads it from the executable.

        Raises:
          InputError: an array is not in host memory although it should be.
        """
        scratch_bytes = attention_scratch_bytes(self.run.config, self.settings, self.run.sequences)
        memory = measure(executable, self.state, self.frozen, scratch_bytes)
        if platform_of(self.sharding) != "cpu":  # a CPU has only host memory
            check_offload(self.run.host_arrays(self.settings), memory, text or (lambda: executable.as_text() or ""))
        return memory


def lower_step(run: Run, settings: ModelSettings, max_steps: int = 1) -> LoweredStep:
    """The same step that `lcjax.train` runs, for sequences of `settings.max_seq_length` tokens.

    It is for the devices of the run's weights, whose mesh has the shape in the settings.
    """
    params = jax.tree.map(abstract_like, run.params)
    sharding, mesh = params["norm"]["weight"].sharding, settings.execution.mesh
    params = jax.tree.map_with_path(functools.partial(_placed, mesh), params)
    program = run.program(params, settings, max_steps)
    state = step.abstract_state(program.optimizer, program.trainable, sharding, mesh)
    shape = run.arguments.gradient_accumulation_steps, run.sequences, settings.max_seq_length
    devices = Devices() if mesh.size == 1 else Devices(mesh, sharding.mesh)
    divided = sharding if devices.mesh is None else with_spec(sharding, STEP)
    batches = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=divided) for name in step.BATCH_KEYS}
    train_step = step.jit_train_step(program.objective, program.optimizer, platform_of(sharding), devices)
    with lowering_for(sharding):
        lowered = train_step.lower(state, program.frozen, batches)
    return LoweredStep(run, settings, sharding, state, program.frozen, lowered)


def _placed(mesh: MeshShape, path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = divided(leaf.sharding, mesh, path, leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def step_memory(
    run: Run, settings: ModelSettings, compiler: Callable[[jax.stages.Lowered], jax.stages.Compiled]
) -> Memory:
    """The memory of one step; calls `compiler` only if the cache does not have the result.

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
    """The results for one step: memory, optimized program, and XLA's report of live ranges."""

    memory: Memory
    program: Program
    live_ranges: str


def compile_step(workload: Workload, settings: ModelSettings) -> CompiledStep:
    """Compiles the step of a workload, with one sequence, for its GPU.

    Raises:
      InputError: an unknown GPU, no compiler for it, or an array that is not in host memory
        although it should be.
    """
    sharding = gpu_sharding(workload.gpu, workload.gpus, workload.hosts, settings.execution.mesh)
    lowered_step = lower_step(Run.of(workload, sharding), settings)
    with tempfile.TemporaryDirectory() as folder:
        executable = compile_lowered(lowered_step.lowered, {"xla_dump_to": folder})
        # Both files are from the same point of the compilation. In `executable.as_text()`, which is
        # later, some names differ.
        text, live_ranges = (_dumped(folder, f"*gpu_after_optimizations{end}.txt") for end in ("", "-live-range"))
    return CompiledStep(lowered_step.memory(executable, lambda: text), Program(text), live_ranges)


def platform_of(sharding: Sharding) -> str:
    """The platform of a sharding's devices: "cpu", or a name of GPUs."""
    return next(iter(sharding.device_set)).platform


def _dumped(folder: str, pattern: str) -> str:
    [path] = Path(folder).glob(pattern)
    return path.read_text(encoding="utf-8")
