"""The training step of a run, compiled for its GPU."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import use_abstract_mesh

from lcjax import step
from lcjax.model import ModelSettings
from lcjax.pallas.triton.block_sizes import traced_for
from lcjax.plan.aot import abstract, compile_lowered, gpu_sharding
from lcjax.plan.hlo import Program
from lcjax.plan.memory import Memory, measure, scratch_of
from lcjax.plan.offload import check_offload, host_arrays
from lcjax.plan.parameters import abstract_params
from lcjax.plan.workload import Workload
from lcjax.step.program import build_program


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What the compiler says of one step: its memory, its optimized program, and when which buffer is alive (XLA's report)."""

    memory: Memory
    program: Program
    live_ranges: str


def compile_step(workload: Workload, settings: ModelSettings) -> CompiledStep:
    """Compiles the very step that `lcjax.train` runs, on sequences of `settings.max_seq_length` tokens, one a step.

    Raises:
      InputError: an unknown GPU, no compiler for it, or an array that was to be in host memory and is not.
    """
    sharding = gpu_sharding(workload.gpu, workload.gpus, workload.hosts)
    params = abstract(abstract_params(workload.config, workload.lora, workload.quantize), sharding)
    # The number of steps is in the schedule's constants alone.
    program = build_program(workload.config, params, settings, workload.training, max_steps=1)
    state = step.abstract_state(program.optimizer, program.trainable, sharding)
    shape = (1, 1, settings.max_seq_length)
    batches = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for name in step.BATCH_KEYS}
    # From 0.11 on, Pallas asks the mesh around it what GPU it lowers for.
    with traced_for(next(iter(sharding.device_set))), use_abstract_mesh(sharding.mesh.abstract_mesh):
        lowered = step.jit_train_step(program.objective, program.optimizer, platform="gpu").lower(
            state, program.frozen, batches
        )
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_lowered(lowered, {"xla_dump_to": folder})
        # Both are of one moment: names change between it and `compiled.as_text()`.
        text, live_ranges = (_dumped(folder, f"*gpu_after_optimizations{end}.txt") for end in ("", "-live-range"))
    memory = measure(compiled, state, program.frozen, scratch_of(workload.config, settings))
    arrays = host_arrays(workload.config, settings, jnp.bfloat16)
    check_offload(arrays, memory, lambda: text)
    return CompiledStep(memory, Program(text), live_ranges)


def _dumped(folder: str, pattern: str) -> str:
    [path] = Path(folder).glob(pattern)
    return path.read_text(encoding="utf-8")
