"""The training step of a run, compiled for its GPU."""

from __future__ import annotations

import dataclasses
import functools
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.errors import JaxRuntimeError

from lcjax import step
from lcjax.deviceless import abstract, compile_lowered, gpu_sharding
from lcjax.errors import InputError
from lcjax.model import ModelSettings
from lcjax.plan.hlo import Program
from lcjax.plan.memory import Memory, measure
from lcjax.plan.parameters import abstract_params
from lcjax.plan.workload import Workload
from lcjax.train.arguments import TrainingArguments
from lcjax.train.program import build_program

_SHARED_MEMORY = re.compile(r"Shared memory size limit exceeded: requested (\d+), available: (\d+)")


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What the compiler says of one step: its memory, its optimized program, and when which buffer is alive (XLA's report)."""

    memory: Memory
    program: Program
    live_ranges: str


def compile_step(workload: Workload, settings: ModelSettings) -> CompiledStep:
    """Compiles the very step that `lcjax.train` runs, on sequences of `settings.max_seq_length` tokens, one a step.

    Raises:
      InputError: an unknown GPU, no compiler for it, or kernels that are too large for it.
    """
    sharding = gpu_sharding(workload.gpu, workload.gpus, workload.hosts)
    params = abstract_params(workload.config, workload.lora, workload.quantize)
    # The number of steps is in the schedule's constants alone.
    program = build_program(workload.config, params, settings, TrainingArguments(), max_steps=1)
    init = functools.partial(step.init_state, program.optimizer, seed=0)
    state = jax.eval_shape(init, program.trainable)
    shape = (1, 1, settings.max_seq_length)
    batches = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in step.BATCH_KEYS}
    arguments = abstract((state, program.frozen, batches), sharding)
    lowered = step.jit_train_step(program.objective, program.optimizer, platform="gpu").lower(*arguments)
    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = compile_lowered(lowered, {"xla_dump_to": folder})
        except JaxRuntimeError as error:
            raise _refused(error, workload.gpu, settings.attention) from error
        # Both are of one moment: names change between it and `compiled.as_text()`.
        text, live_ranges = (_dumped(folder, f"*gpu_after_optimizations{end}.txt") for end in ("", "-live-range"))
    return CompiledStep(measure(compiled, state, program.frozen), Program(text), live_ranges)


def _dumped(folder: str, pattern: str) -> str:
    [path] = Path(folder).glob(pattern)
    return path.read_text(encoding="utf-8")


def _refused(error: Exception, gpu: str, attention: str) -> Exception:
    """The InputError for what the user can mend, else the error itself."""
    if sizes := _SHARED_MEMORY.search(str(error)):
        requested, available = (int(size) for size in sizes.groups())
        return InputError(
            f"attention={attention!r} needs {requested:,} bytes of shared memory for this model's head_dim and {gpu} has "
            f"{available:,}; use --attention xla, or another --gpu"
        )
    return error
