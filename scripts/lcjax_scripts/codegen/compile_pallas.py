"""Compiles lcjax's Pallas kernels for a named GPU, through the public operations."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lcjax import ops
from lcjax.pallas.triton import rope
from lcjax.pallas.triton.block_sizes import block_sizes_for, traced_for
from lcjax.plan.compiling.aot import abstract, compile_lowered, gpu_sharding, lowering_for
from lcjax_scripts.codegen import ptx
from lcjax_scripts.codegen.compiled import ATTENTION_KERNELS, HEADS, KEY_VALUE_HEADS, TOKENS, CompiledKernel

# A line of XLA's launch schedule. It starts with the name of the kernel.
_LAUNCH = re.compile(r"(\w+) grid: \[.*shared_memory: (\d+) bytes")
# From JAX 0.12 on, XLA writes PTX only if it is asked for the results of the emitter. Earlier
# versions then also look up the names of stack frames, which takes ten times as long as compiling.
_WITH_PTX = {"xla_dump_emitter_re": ".*"} if jax.__version_info__ >= (0, 12) else {}


def compile_attention(gpu: str, head_dim: int, dtype: str) -> list[CompiledKernel]:
    """Compiles the forward, dq and dk/dv kernels of causal attention."""
    heads = [(1, TOKENS, count, head_dim) for count in (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS, HEADS)]

    def value_and_gradients(q_BTHD, k_BSKD, v_BSKD, dout_BTHD):
        out_BTHD, backward = jax.vjp(attend, q_BTHD, k_BSKD, v_BSKD)
        return out_BTHD, backward(dout_BTHD)

    def attend(q_BTHD, k_BSKD, v_BSKD):
        return ops.attention(q_BTHD, k_BSKD, v_BSKD, causal=True, implementation="pallas")

    itemsize = jnp.dtype(dtype).itemsize
    with traced_for(device_of(gpu)):
        block_sizes = {kernel: block_sizes_for(kernel, head_dim, itemsize) for kernel in ATTENTION_KERNELS}
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in heads]
    kernels = emitted(value_and_gradients, arguments, gpu)
    return [
        CompiledKernel(
            kernel=kernel,
            head_dim=head_dim,
            dtype=dtype,
            implementation="pallas",
            block=(sizes.query_block, sizes.key_block),
            num_warps=sizes.num_warps,
            num_stages=sizes.num_stages,
            shared_memory=kernels[kernel].shared_memory,
            entry=kernel,
            ptx=kernels[kernel].ptx,
        )
        for kernel, sizes in block_sizes.items()
    ]


def compile_rope(gpu: str, head_dim: int, dtype: str) -> CompiledKernel:
    """Compiles the kernel that rotates queries and keys."""

    def rotate(q_BTHD, k_BTKD, positions_BT, inverse_frequencies_F):
        return ops.rope(q_BTHD, k_BTKD, positions_BT, inverse_frequencies_F, implementation="pallas")

    arguments = [
        jax.ShapeDtypeStruct((1, TOKENS, HEADS, head_dim), dtype),
        jax.ShapeDtypeStruct((1, TOKENS, KEY_VALUE_HEADS, head_dim), dtype),
        jax.ShapeDtypeStruct((1, TOKENS), "int32"),
        jax.ShapeDtypeStruct((head_dim // 2,), "float32"),
    ]
    kernel = emitted(rotate, arguments, gpu)["rope"]
    return CompiledKernel(
        kernel="rope",
        head_dim=head_dim,
        dtype=dtype,
        implementation="pallas",
        block=(rope.heads_at_once(head_dim // 2),),
        num_warps=rope.NUM_WARPS,
        num_stages=rope.NUM_STAGES,
        shared_memory=kernel.shared_memory,
        entry="rope",
        ptx=kernel.ptx,
    )


def device_of(gpu: str) -> Any:
    """Returns a device of the named kind, to compile for."""
    return next(iter(gpu_sharding(gpu).device_set))


class Emitted(NamedTuple):
    """XLA's output for one kernel."""

    ptx: str
    """The module that contains it."""
    shared_memory: int
    """Bytes per program."""


def emitted(function: Callable, arguments: Any, gpu: str) -> dict[str, Emitted]:
    """Returns every kernel that a compiled function launches, including XLA's own, by name."""
    sharding = gpu_sharding(gpu)
    with lowering_for(sharding):
        lowered = jax.jit(function).lower(*abstract(arguments, sharding))
    with tempfile.TemporaryDirectory() as folder:
        compile_lowered(lowered, {"xla_dump_to": folder} | _WITH_PTX)
        modules = [path.read_text(encoding="utf-8") for path in Path(folder).glob("*.ptx")]
        launches = "".join(path.read_text(encoding="utf-8") for path in Path(folder).glob("*thunk_sequence.txt"))
    module_of = {name: module for module in modules for name in ptx.entries(module)}
    return {name: Emitted(module_of[name], int(size)) for name, size in _LAUNCH.findall(launches)}
