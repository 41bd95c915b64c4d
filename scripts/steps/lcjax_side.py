"""The very step of `lcjax.train` on random weights made on the device."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp

from lcjax import step
from lcjax.config import LlamaConfig
from lcjax.memory import parse_memory
from lcjax.model import ModelSettings
from lcjax.plan.memory import Memory, measure
from lcjax.plan.parameters import abstract_params
from lcjax.plan.workload import Workload
from lcjax.presets import resolve_config
from lcjax.train.arguments import TrainingArguments
from lcjax.train.program import build_program
from steps.shape import Shape


@dataclasses.dataclass
class CompiledStep:
    """A step ready to run, again and again; `planned` is what the compiler says that it takes."""

    config: LlamaConfig
    planned: Memory
    compile_seconds: float
    executable: jax.stages.Compiled
    state: Any
    frozen: Any
    batch: Any

    def run(self) -> float:
        """Takes one step and waits for its loss."""
        self.state, metrics = self.executable(self.state, self.frozen, self.batch)
        return float(metrics.loss)


def compile_step(shape: Shape, tokens: int, policy: str, memory: str) -> CompiledStep:
    """The step over one sequence, with that gradient checkpointing and `--memory`."""
    config, quantize = resolve_config(shape.model), None if shape.quantize == "none" else shape.quantize
    lora = Workload(shape.model, config, "h100-80gb", shape.lora_r, quantize).lora
    settings = ModelSettings(
        tokens,
        lora=lora,
        use_gradient_checkpointing=policy,
        attention=shape.attention,
        memory=parse_memory(memory),
    )
    params = jax.tree.map(_random, abstract_params(config, lora, quantize))
    arguments = TrainingArguments(optimizer_memory=shape.optimizer_memory)
    program = build_program(config, params, settings, arguments, max_steps=10)
    del params
    state = step.init_state(program.optimizer, program.trainable, 0)
    program = dataclasses.replace(program, trainable={})
    positions = jnp.arange(tokens, dtype="int32")[None, None]
    ids = positions * 7919 % config.vocab_size
    batch = dict(zip(step.BATCH_KEYS, (ids, ids, positions, positions * 0), strict=True))
    began = time.perf_counter()
    train_step = step.jit_train_step(program.objective, program.optimizer)
    executable = train_step.lower(state, program.frozen, batch).compile()
    seconds = time.perf_counter() - began
    planned = measure(executable, state, program.frozen)
    return CompiledStep(config, planned, seconds, executable, state, program.frozen, batch)


def peak_bytes() -> int:
    """The most that this process has had on its device."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def _random(leaf: Any) -> Any:
    """Values of a weight's size, made on the device."""

    def make():
        bits = jax.lax.iota(jnp.uint32, leaf.size) * jnp.uint32(2654435761) >> 8
        if leaf.dtype == jnp.uint8:
            return (bits & 0xFF).astype(jnp.uint8).reshape(leaf.shape)
        return ((bits.astype(jnp.float32) / 2**23 - 1) * 0.03).astype(leaf.dtype).reshape(leaf.shape)

    return jax.jit(make)()
