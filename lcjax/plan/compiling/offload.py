"""What a step sends to pinned host memory, and the proof that the compiler sent it there.

Whether an array is offloaded is a wish that a compiler may drop without a word: the array then stays on the device, and what was
to be the host's share of memory is the device's. So the bytes of the compiled step are held against those that were asked for.

Shapes: L layers, g layers of which one input is saved, B batch, T tokens, D hidden size, H query heads, d head_dim.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lcjax.config import EMBEDDING_MODULES, LlamaConfig
from lcjax.config.policies import resolve_policy
from lcjax.errors import InputError
from lcjax.model import ModelSettings
from lcjax.model.params import tensor_names
from lcjax.ops.attention.passes import layer_call
from lcjax.ops.attention.registry import backend_of
from lcjax.pallas.triton.block_sizes import traced_with
from lcjax.plan.compiling.hlo import Instruction, Program
from lcjax.plan.compiling.memory import Memory

# How XLA spells the dtypes of activations and of sums.
_XLA_DTYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
_ON_HOST = "S(5)"  # of a layout


@dataclasses.dataclass(frozen=True)
class HostArray:
    """An array that is in host memory: from the forward to the backward pass, of all layers in one, or throughout."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{_XLA_DTYPES[self.dtype]}[{','.join(map(str, self.shape))}]"


def host_arrays(config: LlamaConfig, settings: ModelSettings, dtype: DTypeLike, sequences: int = 1) -> list[HostArray]:
    """What a step over `sequences` sequences of `settings.max_seq_length` tokens keeps in host memory; nothing is compiled.

    Under `offload` every g-th layer's input, `L/g B T D` elements of `dtype`; under `offload_attn` every layer's attention output
    too, `L B T H d`, and its log-sum-exp as the implementation keeps it: float32 [L, B, H, T], twice where `dtype` is float32.
    Embedding and head where the memory settings say so.

    Raises:
      InputError: an implementation of attention whose output and log-sum-exp cannot be kept.
    """
    tokens, layers = settings.max_seq_length, config.num_hidden_layers
    memory = settings.memory_for(tokens)
    policy = resolve_policy(settings.use_gradient_checkpointing, tokens, in_tiles=memory is not None)
    if policy in ("none", "full"):
        return []
    dtype = jnp.dtype(dtype).name
    saved = layers // (memory.save_every if memory else 1)
    inputs = HostArray("the layers' inputs", (saved, sequences, tokens, config.hidden_size), dtype)
    attention = _of_attention(config, settings, dtype, sequences) if policy == "offload_attn" else []
    weights = _embeddings(config, dtype) if memory and memory.embeddings_on_host else []
    return [inputs, *attention, *weights]


def _embeddings(config: LlamaConfig, dtype: str) -> Iterator[HostArray]:
    for name in tensor_names(config):
        if name.path[0] in EMBEDDING_MODULES:
            yield HostArray(name.name, name.shape, dtype)


def pinned_bytes(arrays: list[HostArray], state_bytes: int) -> int:
    """Host memory that a step takes at most with these arrays and an optimizer state of that size.

    The update writes the state anew, beside them or, as the compiler sees fit, in the memory of arrays that are needed no more.
    """
    return sum(array.bytes for array in arrays) + 2 * state_bytes


def _of_attention(config: LlamaConfig, settings: ModelSettings, dtype: str, sequences: int) -> Iterator[HostArray]:
    backend = backend_of(settings.attention)
    if not backend.has_passes:
        raise InputError(
            f"use_gradient_checkpointing='offload_attn' keeps attention's log-sum-exp, which attention={backend.name!r} does not "
            "give; use 'offload', or attention='pallas' or attention='xla'"
        )

    def shape(*heads: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((sequences, settings.max_seq_length, *heads), jnp.dtype(dtype))

    queries = shape(config.num_attention_heads, config.head_dim)
    keys = shape(config.num_key_value_heads, config.head_dim)
    segments = jax.ShapeDtypeStruct((sequences, settings.max_seq_length), jnp.int32)
    with traced_with():  # tiles do not change these shapes, and JAX need not start
        out, lse = backend.residual_shapes(
            functools.partial(layer_call, sees=config.sees), queries, keys, keys, segments
        )
    for name, arrays in (("attention's outputs", [out]), ("attention's log-sum-exps", jax.tree.leaves(lse))):
        for array in arrays:
            yield HostArray(name, (config.num_hidden_layers, *array.shape), array.dtype.name)


def check_offload(expected: list[HostArray], memory: Memory, text: Callable[[], str]) -> None:
    """Holds the host bytes of a compiled step against `expected` and what the optimizer keeps there; they must be equal.

    Where the optimizer keeps its state there, the update's buffers are there besides, once the backward pass has no more use for
    the arrays: in their memory, and if it needs more than theirs, every array is looked for by name instead.

    Args:
      expected: of `host_arrays`.
      memory: of the compiled step; see `lcjax.plan.compiling.memory.measure`.
      text: gives the optimized program, e.g. `compiled.as_text`; it is asked for where the bytes differ.

    Raises:
      InputError: they differ; named are the arrays that stayed on the device, with the line of code that made each.
    """
    wanted = memory.host_state_bytes + sum(array.bytes for array in expected)
    if memory.host_bytes == wanted:
        return
    program = Program(text())
    missing = [line for array in expected if (line := _misplacement(array, program))]
    if memory.host_state_bytes and memory.host_bytes > wanted and not missing:
        return
    raise InputError(
        f"offload: {memory.host_bytes:,} bytes are in host memory instead of {wanted:,}: "
        + ("; ".join(missing) or "every array is there, and others with them")
        + ". This version of JAX does not run the policy; use --use-gradient-checkpointing full, or another version"
    )


def _misplacement(array: HostArray, program: Program) -> str | None:
    """Where the array is that ought to be on the host, in words; None where it is there."""
    on_device = None
    for name, instruction in program.instructions.items():
        for index, (shape, layout) in enumerate(instruction.arrays):
            if not _same_shape(shape, array):
                continue
            if _ON_HOST in layout:
                return None
            if on_device is None or instruction.opcode == "while":
                on_device = program.producer(name, index if len(instruction.arrays) > 1 else None)
    size = f"{array.name} {array} ({array.bytes:,} bytes)"
    if on_device is None:
        return f"{size} are kept nowhere"
    return f"{size} stayed on the device, {_origin(on_device, program)}"


def _same_shape(shape: str, array: HostArray) -> bool:
    """Whether XLA's spelling is that of the array's shape, but for axes of size 1."""
    dtype, _, sizes = shape.removesuffix("]").partition("[")
    spelled = [size for size in re.findall(r"\d+", sizes) if size != "1"]
    return dtype == _XLA_DTYPES[array.dtype] and spelled == [str(size) for size in array.shape if size != 1]


def _origin(producer: Instruction, program: Program) -> str:
    if producer.opcode == "parameter":
        return "an argument of the step"
    operation = producer.op_name.rsplit("/", 1)[-1] or producer.opcode
    source = program.source(producer)
    return f"made by {operation} in {source}" if source else f"made by {operation}"
