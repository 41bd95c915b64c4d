"""Compiles lcjax's Mosaic kernels for a named Hopper GPU, through the public operation."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from lcjax import ops
from lcjax.pallas.mosaic import attention_backward, attention_forward
from lcjax.pallas.mosaic.backend import HEAD_DIMS
from lcjax.pallas.mosaic.launch import COMPUTING, WARP, WARPGROUP
from lcjax.plan.compiling.aot import abstract, compile_lowered, gpu_sharding, lowering_for
from lcjax_scripts.codegen import ptx
from lcjax_scripts.codegen.compiled import HEADS, KEY_VALUE_HEADS, TOKENS, CompiledKernel

GPUS = ("h100-80gb", "h200")
DTYPES = ("bfloat16", "float16")
KERNELS = ("attention_forward", "attention_backward")

_FOLDER = "MOSAIC_GPU_DUMP_TO"
_SHARED_MEMORY = re.compile(r"dynamic_shared_memory_size %c(\d+)_i32")


def supports(gpu: str, head_dim: int, dtype: str) -> bool:
    return gpu in GPUS and head_dim in HEAD_DIMS and dtype in DTYPES


def compile_attention(gpu: str, head_dim: int, dtype: str) -> list[CompiledKernel]:
    """Compiles both kernels of causal attention.

    `num_warps` counts the warps that compute, and `num_stages` the buffers of keys or queries.
    """
    sharding = gpu_sharding(gpu)
    heads = (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS, HEADS)

    def value_and_gradients(q_BTHD, k_BSKD, v_BSKD, dout_BTHD):
        out_BTHD, backward = jax.vjp(attend, q_BTHD, k_BSKD, v_BSKD)
        return out_BTHD, backward(dout_BTHD)

    def attend(q_BTHD, k_BSKD, v_BSKD):
        return ops.attention(q_BTHD, k_BSKD, v_BSKD, causal=True, implementation="mosaic")

    arguments = [jax.ShapeDtypeStruct((1, TOKENS, count, head_dim), dtype) for count in heads]
    with tempfile.TemporaryDirectory() as folder:
        with lowering_for(sharding):
            lowered = jax.jit(value_and_gradients).lower(*abstract(arguments, sharding))
        with _dumping_to(folder):
            compile_lowered(lowered)
        # JAX 0.10 loses the name of the backward kernel, which is the second one.
        files = sorted(Path(folder).glob("*.ptx"), key=lambda path: int(path.stem.rpartition("_")[2]))
        return [
            _compiled(kernel, path, head_dim, dtype, module.query_block_for(head_dim), computing)
            for kernel, path, module, computing in zip(
                KERNELS,
                files,
                (attention_forward, attention_backward),
                (attention_forward.computing_for(head_dim), COMPUTING),
                strict=True,
            )
        ]


def _compiled(kernel: str, path: Path, head_dim: int, dtype: str, query_block: int, computing: int) -> CompiledKernel:
    module = path.read_text(encoding="utf-8")
    [entry] = ptx.entries(module)
    return CompiledKernel(
        kernel=kernel,
        head_dim=head_dim,
        dtype=dtype,
        implementation="mosaic",
        block=(query_block, attention_forward.KEY_BLOCK),
        num_warps=computing * WARPGROUP // WARP,
        num_stages=attention_forward.STAGES,
        shared_memory=_shared_memory(path.with_name(f"{path.stem}.mlir-passes.log")),
        entry=entry,
        ptx=module,
    )


def _shared_memory(log: Path) -> int:
    """Returns the bytes of shared memory of a program, from the log of a hundred megabytes."""
    with log.open(encoding="utf-8") as lines:
        return next(int(found[1]) for line in lines if (found := _SHARED_MEMORY.search(line)))


@contextlib.contextmanager
def _dumping_to(folder: str) -> Iterator[None]:
    """Makes Mosaic write what it generates to a folder.

    It then looks for a disassembler where none is, and says so on standard error, which goes to a
    file meanwhile.
    """
    before = os.environ.get(_FOLDER)
    os.environ[_FOLDER] = folder
    stderr = os.dup(2)
    try:
        with Path(folder, "stderr").open("w", encoding="utf-8") as messages:
            os.dup2(messages.fileno(), 2)
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.environ.pop(_FOLDER)
        if before is not None:
            os.environ[_FOLDER] = before
