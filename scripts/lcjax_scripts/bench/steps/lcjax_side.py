"""The step of `lcjax.train`, with random weights that are created on the devices."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from lcjax import step
from lcjax.config.parallel.mesh import MeshShape
from lcjax.config.presets import resolve_config
from lcjax.parallel.devices import WHOLE, Devices
from lcjax.parallel.placement import on_one
from lcjax.parallel.weights import divided
from lcjax.plan.compiling.aot import abstract
from lcjax.plan.compiling.compile import LoweredStep, lower_step
from lcjax.plan.compiling.memory import Memory
from lcjax.plan.compiling.parameters import abstract_params
from lcjax.plan.compiling.run import Run
from lcjax.plan.workload import Workload
from lcjax.step import resolved_settings
from lcjax.train.arguments import RunArguments
from lcjax.train.devices import prepare_devices
from lcjax_scripts.bench.steps.shape import Shape

MAX_STEPS = 10


@dataclasses.dataclass(frozen=True)
class TracedStep:
    """A step traced for the present device. It uses no device memory yet."""

    step: LoweredStep
    devices: Devices
    trace_seconds: float

    def compile(self) -> CompiledStep:
        """Compiles the step. XLA runs algorithms on the device to choose one."""
        began = time.perf_counter()
        executable = self.step.lowered.compile()
        seconds = time.perf_counter() - began
        return CompiledStep(self.step, self.devices, executable, self.step.memory(executable), seconds)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A compiled step. `planned` is the memory that the compiler reports."""

    step: LoweredStep
    devices: Devices
    executable: jax.stages.Compiled
    planned: Memory
    compile_seconds: float

    def load(self) -> Callable[[], float]:
        """Creates weights, adapter, optimizer and batch.

        Returns a function that takes a step and returns its loss.
        """
        run, settings, devices = self.step.run, self.step.settings, self.devices
        weights = jax.tree.map_with_path(functools.partial(_random, devices.shape), run.params)
        program = run.program(weights, settings, MAX_STEPS)
        del weights
        state = devices.distribute(step.init_state(program.optimizer, program.trainable, 0))
        frozen = program.frozen
        del program  # otherwise the trained weights would exist twice: here and in the state
        batch = devices.divide_step(_batch(devices.shape.data, settings.max_seq_length, run.config.vocab_size))

        def one_step() -> float:
            nonlocal state
            state, metrics = self.executable(state, frozen, batch)
            return float(metrics.loss)

        return one_step


def trace_step(shape: Shape, tokens: int, policy: str, memory: str) -> TracedStep:
    """Traces the step for one sequence.

    Args:
      shape: the model and how it runs.
      tokens: of the sequence.
      policy, memory: gradient checkpointing and `--memory`, as in `lcjax.train`. The device is
        configured as `lcjax.train` configures it.

    Raises:
      InputError: settings that `lcjax.train` refuses.
    """
    config, quantize = resolve_config(shape.model), None if shape.quantize == "none" else shape.quantize
    arguments = RunArguments(
        max_seq_length=tokens,
        use_gradient_checkpointing=policy,
        memory=memory,
        attention=shape.attention,
        optimizer_memory=shape.optimizer_memory,
        lora_r=shape.lora_r or RunArguments.lora_r,
        full_finetuning=not shape.lora_r,
        gradient_accumulation_steps=shape.mesh_shape.data,
        **dataclasses.asdict(shape.mesh_request),
    )
    # Must come first, because the code below initializes JAX's devices.
    prepare_devices(config, arguments)
    lora = Workload(shape.model, config, "h100-80gb", shape.lora_r, quantize).lora
    settings = resolved_settings(
        arguments.execution_request, config, jnp.bfloat16, tokens, lora=lora, one_document_a_row=True, mesh=None
    )
    params = abstract_params(config, lora, quantize)
    mesh = step.resolve_mesh(
        arguments.mesh_request,
        config,
        step.Hardware(jax.device_count(), jax.local_device_count()),
        max_seq_length=tokens,
        micro_batches=arguments.gradient_accumulation_steps,
        weights_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)),
        trains_every_weight=lora is None,
        attention=settings.execution.attention,
    )
    devices, settings = Devices.of(mesh), step.with_mesh(settings, mesh)
    params = abstract(params, on_one(jax.devices()[0]) if devices.mesh is None else NamedSharding(devices.mesh, WHOLE))
    began = time.perf_counter()
    lowered = lower_step(Run.here(config, params, arguments, lora), settings, MAX_STEPS)
    return TracedStep(lowered, devices, time.perf_counter() - began)


def peak_bytes() -> int:
    """Returns the largest peak of a device's memory in this process."""
    return max((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices())


def _batch(rows: int, tokens: int, vocab_size: int) -> dict[str, np.ndarray]:
    """Arrays [rows, 1, tokens] of a step, one document in each row."""
    positions = np.broadcast_to(np.arange(tokens, dtype=np.int32), (rows, 1, tokens))
    ids = (positions.astype(np.int64) * 7919 % vocab_size).astype(np.int32)
    return dict(zip(step.BATCH_KEYS, (ids, ids, positions, positions * 0), strict=True))


def _random(mesh: MeshShape, path: Any, leaf: Any) -> Any:
    """Returns values with the shape and dtype of a weight, created on the devices of `mesh`."""

    def make():
        bits = jax.lax.iota(jnp.uint32, leaf.size) * jnp.uint32(2654435761) >> 8
        if path[-1].key == "exponents":  # 2^-9 to 2^-6, as of weights
            return (118 + (bits & 3)).astype(jnp.uint8).reshape(leaf.shape)
        if leaf.dtype == jnp.uint8:
            return (bits & 0xFF).astype(jnp.uint8).reshape(leaf.shape)
        return ((bits.astype(jnp.float32) / 2**23 - 1) * 0.03).astype(leaf.dtype).reshape(leaf.shape)

    return jax.jit(make, out_shardings=divided(leaf.sharding, mesh, path, leaf))()
