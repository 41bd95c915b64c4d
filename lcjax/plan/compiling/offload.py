"""The arrays that a step offloads to pinned host memory, and a check that they really are there.

A compiler may ignore a request to offload without any message. The array then stays on the device
and takes memory there. The host memory of the compiled step is therefore compared with what was
requested.

Shapes: L layers, g layers that share one saved input, B batch, T tokens, D hidden size,
H query heads, d head_dim.
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
from lcjax.config.families import AttentionView
from lcjax.errors import InputError
from lcjax.model import ModelSettings
from lcjax.model.params import tensor_names
from lcjax.ops.attention.backend import Backend
from lcjax.ops.attention.passes import layer_call
from lcjax.ops.attention.registry import backend_of
from lcjax.pallas.triton.block_sizes import traced_with
from lcjax.plan.compiling.hlo import Instruction, Program
from lcjax.plan.compiling.memory import Memory

# XLA's names for the dtypes of activations and of sums.
_XLA_DTYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
_ON_HOST = "S(5)"  # in a layout


@dataclasses.dataclass(frozen=True)
class HostArray:
    """An array in host memory: activations of all layers until the backward pass, or weights."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{_XLA_DTYPES[self.dtype]}[{','.join(map(str, self.shape))}]"


def host_arrays(config: LlamaConfig, settings: ModelSettings, dtype: DTypeLike, sequences: int = 1) -> list[HostArray]:
    """A device's arrays in host memory, of a step over `sequences` sequences; compiles nothing.

    T is the number of its tokens of a sequence of `settings.max_seq_length` tokens. Under `offload`
    the arrays are every g-th layer's input, `L/g B T D` elements of `dtype`. Under `offload_attn`
    there are also every layer's attention output, `L B T H d`, and its log-sum-exp in the form that
    the implementation saves: float32 [L, B, H, T], two of them if `dtype` is float32 or if keys
    travel along a ring. If devices exchange tokens for heads, it has more tokens of fewer heads.
    The memory settings may add embedding and head.

    Raises:
      InputError: an implementation of attention that cannot save its output and log-sum-exp.
    """
    tokens, layers = settings.local_tokens, config.num_hidden_layers
    policy, memory = settings.form.policy, settings.form.memory
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
    """An upper bound of the bytes of host memory that a step pins.

    These are the arrays and an optimizer state of `state_bytes` bytes. The update writes a new copy
    of the state. The compiler may put it into the memory of arrays that are no longer needed, or
    into additional memory.
    """
    return sum(array.bytes for array in arrays) + 2 * state_bytes


def _of_attention(config: LlamaConfig, settings: ModelSettings, dtype: str, sequences: int) -> Iterator[HostArray]:
    backend = backend_of(settings.execution.attention)
    if not backend.has_passes:
        raise InputError(
            f"use_gradient_checkpointing='offload_attn' saves attention's log-sum-exp, which attention={backend.name!r} does not "
            "return; use 'offload', or attention='pallas' or attention='xla'"
        )

    mesh, local_tokens = settings.execution.mesh, settings.local_tokens

    def shape(heads: int) -> jax.ShapeDtypeStruct:
        """Of what a device has while attention runs."""
        size = sequences, local_tokens * mesh.heads, -(-heads // mesh.heads), config.head_dim
        return jax.ShapeDtypeStruct(size, jnp.dtype(dtype))

    queries, keys = shape(config.num_attention_heads), shape(config.num_key_value_heads)
    lse = _log_sum_exps(backend, config.views[0], queries, keys)
    if mesh.ring > 1:
        lse = [jax.ShapeDtypeStruct((sequences, queries.shape[2], queries.shape[1]), jnp.float32)] * 2
    out = jax.ShapeDtypeStruct((sequences, local_tokens, config.num_attention_heads, config.head_dim), jnp.dtype(dtype))
    for name, arrays in (("attention's outputs", [out]), ("attention's log-sum-exps", lse)):
        for array in arrays:
            yield HostArray(name, (config.num_hidden_layers, *array.shape), array.dtype.name)


@functools.cache
def _log_sum_exps(
    backend: Backend, sees: AttentionView, queries: jax.ShapeDtypeStruct, keys: jax.ShapeDtypeStruct
) -> list[jax.ShapeDtypeStruct]:
    """What `backend` saves apart from its output, for queries and keys of shape [B, T, H, d].

    Cached, because a search over memory settings asks for the same few shapes a hundred times, and
    tracing a kernel takes 25 ms.
    """
    segments = jax.ShapeDtypeStruct(queries.shape[:2], jnp.int32)
    with traced_with():  # block sizes do not change these shapes, and JAX need not start
        _, lse = backend.residual_shapes(functools.partial(layer_call, sees=sees), queries, keys, keys, segments)
    return jax.tree.leaves(lse)


def check_offload(expected: list[HostArray], memory: Memory, text: Callable[[], str]) -> None:
    """Checks that a compiled step's host memory has `expected` and the optimizer's state.

    If the optimizer's state is in host memory, so are the buffers of its update. They reuse the
    memory of the offloaded arrays, which the update no longer needs, but may take more than that.
    In that case the program is searched for every array instead.

    Args:
      expected: the arrays of `host_arrays`.
      memory: the memory of the compiled step (see `lcjax.plan.compiling.memory.measure`).
      text: returns the optimized program, e.g. `compiled.as_text`; called only if the bytes differ.

    Raises:
      InputError: the bytes differ. The message names the arrays that stayed on the device, with the
        line of code that made each.
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
        + ("; ".join(missing) or "every expected array is there, and so are others")
        + ". This version of JAX does not support the policy; use --use-gradient-checkpointing full, or another version"
    )


def _misplacement(array: HostArray, program: Program) -> str | None:
    """A message that says where an array is instead of in host memory; None if it is there."""
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
        return f"{size} are not in the program"
    return f"{size} stayed on the device, {_origin(on_device, program)}"


def _same_shape(shape: str, array: HostArray) -> bool:
    """Whether a shape in XLA's syntax is that of the array, ignoring axes of size 1."""
    dtype, _, sizes = shape.removesuffix("]").partition("[")
    found = [size for size in re.findall(r"\d+", sizes) if size != "1"]
    return dtype == _XLA_DTYPES[array.dtype] and found == [str(size) for size in array.shape if size != 1]


def _origin(producer: Instruction, program: Program) -> str:
    if producer.opcode == "parameter":
        return "an argument of the step"
    operation = producer.op_name.rsplit("/", 1)[-1] or producer.opcode
    source = program.source(producer)
    return f"made by {operation} in {source}" if source else f"made by {operation}"
