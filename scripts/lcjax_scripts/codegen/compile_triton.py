"""Compiles triton_ref's kernels: `python -m ...compile_triton GPU HEAD_DIMS DTYPE OUTPUT`.

`lcjax_scripts.codegen.triton_process` starts this module in a separate process, because lcjax and
torch are never imported together.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from lcjax_scripts.codegen.compiled import ATTENTION_KERNELS, HEADS, KEY_VALUE_HEADS, CompiledKernel, save
from triton_ref.block_sizes import block_sizes_for
from triton_ref.compile import compiled
from triton_ref.rope import HEADS_A_STEP

CAPABILITIES = {"a100-80gb": 80, "h100-80gb": 90, "h200": 90, "b200": 100}


def main(gpu: str, head_dims: str, dtype: str, output: str) -> int:
    names = [(kernel, int(head_dim)) for head_dim in head_dims.split(",") for kernel in (*ATTENTION_KERNELS, "rope")]
    save((_compile(gpu, kernel, head_dim, dtype) for kernel, head_dim in names), Path(output))
    return 0


def _compile(gpu: str, kernel: str, head_dim: int, dtype: str) -> CompiledKernel:
    torch_dtype = getattr(torch, dtype)
    name = kernel.removeprefix("attention_")  # the name in triton_ref
    result = compiled(name, head_dim, torch_dtype, heads=HEADS, kv_heads=KEY_VALUE_HEADS, capability=CAPABILITIES[gpu])
    sizes = block_sizes_for(name, head_dim, torch_dtype) if kernel in ATTENTION_KERNELS else None
    return CompiledKernel(
        kernel=kernel,
        head_dim=head_dim,
        dtype=dtype,
        implementation="triton",
        block=(sizes.queries, sizes.keys) if sizes else (int(HEADS_A_STEP),),
        num_warps=result.metadata.num_warps,
        num_stages=result.metadata.num_stages,
        shared_memory=result.metadata.shared,
        entry=result.metadata.name,
        ptx=result.asm["ptx"],
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
