"""Before the first step: settings under which it fits the GPU that is here, or a refusal that says what would mend it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lcjax import step
from lcjax.config import LlamaConfig
from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError
from lcjax.memory.allocators import host_limit_bytes
from lcjax.model import ModelSettings
from lcjax.ops.nf4 import is_quantized
from lcjax.parallel.memories import is_on_host
from lcjax.parallel.placement import abstract_like, this_device
from lcjax.plan.candidates import Candidate, candidates
from lcjax.plan.compile_cache import kept
from lcjax.plan.cost import step_seconds
from lcjax.plan.memory import GIB, Memory, measure, scratch_of
from lcjax.plan.offload import check_offload, host_arrays, pinned_bytes
from lcjax.plan.parameters import abstract_params
from lcjax.plan.search import LENGTH_STEP
from lcjax.plan.tuner import Tuning, tune
from lcjax.step.program import build_program

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Room:
    """Bytes that a step may take on the device and in pinned host memory."""

    device: int
    host: int


@dataclasses.dataclass(frozen=True)
class Fit:
    """The settings with which a run fits, what its step takes, and what was tried."""

    settings: ModelSettings
    memory: Memory
    tuning: Tuning

    def describe(self, room: Room) -> str:
        """In one line, for the user."""
        tried = sum(trial.memory is not None for trial in self.tuning.trials)
        host = f" and {_gib(self.memory.host_bytes)} of pinned host memory" if self.memory.host_bytes else ""
        return (
            f"memory: {self.tuning.chosen} takes {_gib(self.memory.device_bytes)} of {_gib(room.device)} on the GPU{host}"
            f" ({tried} compiled)"
        )


def room_here() -> Room | None:
    """What this process' GPU and host have; None without a GPU, where memory is the operating system's to give."""
    device = this_device()
    statistics = device.memory_stats() if device.platform == "gpu" else None
    return Room(statistics["bytes_limit"], host_limit_bytes()) if statistics else None


def fit(
    config: LlamaConfig,
    params: Tree,
    settings: ModelSettings,
    arguments: TrainingArguments,
    room: Room,
    *,
    compiled: Callable[[jax.stages.Lowered], jax.stages.Compiled] = jax.stages.Lowered.compile,
) -> Fit:
    """The fastest settings with which the training step fits: of all where `settings.memory` is "auto", else as told.

    Args:
      params: the model's weights, or ShapeDtypeStructs with shardings; the step is compiled for where they are.
      compiled: the compiler; asked only what it was not asked before (see `lcjax.plan.compile_cache`).

    Raises:
      InputError: the step fits in no way that may be tried; the message says what it takes and what would mend that.
    """

    abstract = jax.tree.map(abstract_like, params)
    state_bytes = build_program(config, abstract, settings, arguments, max_steps=1).host_state_bytes

    def host_fits(settings: ModelSettings) -> bool:
        arrays = host_arrays(config, settings, _dtype(params), arguments.per_device_train_batch_size)
        return pinned_bytes(arrays, state_bytes) <= room.host

    # Elsewhere they would leave a copy on the device: the caller's model.
    may_leave = settings.lora is not None and is_on_host(params["embed_tokens"]["weight"])

    def attempt(candidate: Candidate) -> tuple[Memory | None, bool]:
        try:
            memory = step_memory(config, params, candidate.applied(settings), arguments, compiled)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return None, False  # XLA tries kernels out while it compiles, and had no room for one's arguments
        return memory, memory.device_bytes <= room.device and memory.host_bytes <= room.host

    def seconds(candidate: Candidate) -> float:
        rank = settings.lora.r if settings.lora else 0
        quantised = _is_quantized(params)
        return step_seconds(config, candidate.applied(settings), lora_r=rank, quantised=quantised)

    tuning = tune(_ways(config, settings, host_fits, may_leave), seconds, attempt)
    [chosen] = [trial for trial in tuning.trials if trial.candidate == tuning.chosen]
    if chosen.memory is None:
        raise InputError(
            f"a step of {settings.max_seq_length:,} tokens is too large for {_gib(room.device)} on the GPU even to be compiled "
            f"({chosen.candidate}); use {'' if _is_quantized(params) else '--quantize nf4, '}a smaller --max-seq-length or a "
            "GPU with more memory"
        )
    if not chosen.fits:
        raise _refused(chosen.memory, room, settings, arguments, _is_quantized(params), str(chosen.candidate))
    return Fit(tuning.chosen.applied(settings), chosen.memory, tuning)


def pinned_at_most(config: LlamaConfig, settings: ModelSettings, arguments: TrainingArguments, limit: int) -> int:
    """Bytes that a run pins in host memory, of the settings that pin most within `limit` bytes; does not start JAX's devices.

    0 where all of them take more than that: `fit` refuses the run.
    """
    params = abstract_params(config, settings.lora, None)
    state_bytes = build_program(config, params, settings, arguments, max_steps=1).host_state_bytes

    def pinned(settings: ModelSettings) -> int:
        arrays = host_arrays(config, settings, jnp.bfloat16, arguments.per_device_train_batch_size)
        return pinned_bytes(arrays, state_bytes)

    ways = _ways(config, settings, lambda settings: pinned(settings) <= limit, settings.lora is not None)
    return max((size for way in ways if (size := pinned(way.applied(settings))) <= limit), default=0)


def _ways(
    config: LlamaConfig,
    settings: ModelSettings,
    host_fits: Callable[[ModelSettings], bool],
    embeddings_may_leave: bool,
) -> list[Candidate]:
    """All that may be tried where `settings.memory` is "auto", else the one that was told."""
    tokens = settings.max_seq_length
    if settings.memory == "auto":
        return candidates(config, settings, host_fits, embeddings_may_leave=embeddings_may_leave)
    return [Candidate(settings.policy_for(tokens), settings.memory_for(tokens), settings.loss_chunk)]


def step_memory(
    config: LlamaConfig, params: Tree, settings: ModelSettings, arguments: TrainingArguments, compiled: Callable
) -> Memory:
    """What one step of the run takes, arguments included; and the proof that what was to go to host memory goes there."""
    abstract = jax.tree.map(abstract_like, params)
    program = build_program(config, abstract, settings, arguments, max_steps=1)
    sharding = abstract["norm"]["weight"].sharding
    state = step.abstract_state(program.optimizer, program.trainable, sharding)
    rows = arguments.per_device_train_batch_size
    shape = arguments.gradient_accumulation_steps, rows, settings.max_seq_length
    batches = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for name in step.BATCH_KEYS}
    platform = next(iter(sharding.device_set)).platform
    train_step = step.jit_train_step(program.objective, program.optimizer, platform)
    lowered = train_step.lower(state, program.frozen, batches)

    def ask() -> Memory:
        executable = compiled(lowered)
        memory = measure(executable, state, program.frozen, scratch_of(config, settings, rows))
        if platform != "cpu":  # whose memory is all the host's
            arrays = host_arrays(config, settings, _dtype(params), rows)
            check_offload(arrays, memory, lambda: executable.as_text() or "")
        return memory

    [kind] = {device.device_kind for device in sharding.device_set}
    digest = hashlib.sha256(lowered.as_text().encode()).hexdigest()
    return kept({"device": kind, "program": digest}, lambda content: Memory(**content), ask)


def _dtype(params: Tree) -> Any:
    return params["embed_tokens"]["weight"].dtype


def _is_quantized(params: Tree) -> bool:
    return is_quantized(params["layers"]["mlp"]["up_proj"]["weight"])


def _refused(
    memory: Memory, room: Room, settings: ModelSettings, arguments: TrainingArguments, quantised: bool, way: str
) -> InputError:
    """With the three cheapest mends."""
    mends = []
    if settings.memory != "auto":
        mends.append("--memory auto")
    if arguments.per_device_train_batch_size > 1:
        mends.append("--per-device-train-batch-size 1")
    if settings.lora is not None and not quantised and memory.device_bytes > room.device:
        mends.append("--quantize nf4")
    share = min(
        (room.device - memory.argument_bytes) / max(1, memory.device_bytes - memory.argument_bytes),
        room.host / max(1, memory.host_bytes),
    )
    shorter = int(share * settings.max_seq_length) // LENGTH_STEP * LENGTH_STEP
    if 0 < shorter < settings.max_seq_length:
        mends.append(f"--max-seq-length {shorter}")
    if memory.device_bytes > room.device:
        mends.append(f"a GPU with {_gib(memory.device_bytes)} free")
    else:
        mends.append(f"a host with {_gib(memory.host_bytes)} to pin")
    return InputError(
        f"a step of {settings.max_seq_length:,} tokens takes {_gib(memory.device_bytes)} of {_gib(room.device)} on the GPU and "
        f"{_gib(memory.host_bytes)} of {_gib(room.host)} of host memory ({way}); use {', or '.join(mends[:3])}"
    )


def _gib(count: int) -> str:
    return f"{count / GIB:,.1f} GiB"
