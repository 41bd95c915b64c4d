"""Compiles the kernels for an NVIDIA GPU without having one, as a launch would."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from triton_ref.attention import FUNCTIONS, attention_constants, summation
from triton_ref.block_sizes import KERNELS, BlockSizes, block_sizes_for
from triton_ref.rope import OPTIONS, rope_constants, rope_kernel

TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
# The arguments that are neither constants nor pointers to the caller's dtype.
TYPES_BY_NAME = dict.fromkeys(("lse", "dlse", "delta", "base2_lse", "totals", "sinks", "inverse_frequencies"), "*fp32")
TYPES_BY_NAME |= dict.fromkeys(("query_segments", "key_segments", "ranges", "positions"), "*i32")
TYPES_BY_NAME |= dict.fromkeys(("T", "S", "lower", "upper"), "i32") | {"scale": "fp32"}


def compiled(
    kernel: str,
    head_dim: int,
    dtype: torch.dtype,
    block_sizes: Mapping[str, BlockSizes] | None = None,
    *,
    heads: int = 32,
    kv_heads: int = 8,
    causal: bool = True,
    window: bool = False,
    segments: bool = False,
    soft_cap: float | None = None,
    sinks: bool = False,
    lse_cotangent: bool = False,
    capability: int = 90,
) -> Any:
    """Returns Triton's compiled kernel, with `asm["ptx"]`, `metadata.shared` (bytes) and so on.

    Args:
      kernel: "forward", "dq", "dkv", or "rope" (in place, all of head_dim).
      block_sizes: as in `triton_ref.attention`.
      causal, window, segments, sinks, lse_cotangent: whether the call has each of these.
      capability: the compute capability, which is 90 for an H100 or H200.

    Raises:
      ValueError: an unknown kernel, or TRITON_INTERPRET is set and nothing can be compiled.
    """
    if knobs.runtime.interpret or not isinstance(rope_kernel, triton.JITFunction):
        raise ValueError("compiled: TRITON_INTERPRET is set; unset it before importing triton")
    if kernel == "rope":
        constants = rope_constants(heads, kv_heads, head_dim, head_dim // 2) | {"TRANSPOSED": False, "IN_PLACE": True}
        return _compile(rope_kernel, dtype, constants, capability, OPTIONS)
    if kernel not in KERNELS:
        raise ValueError(f"compiled: kernel {kernel!r} is unknown; use one of {', '.join(KERNELS)}, rope")
    sizes = block_sizes_for(kernel, head_dim, dtype, block_sizes)
    constants = attention_constants(heads, kv_heads, head_dim, soft_cap, sizes) | summation(kernel, keys=0)
    bounds = {"lower": window, "upper": causal or window}
    if kernel == "dkv":
        bounds = {"lower": bounds["upper"], "upper": bounds["lower"]}
    given = bounds | dict.fromkeys(("query_segments", "key_segments", "ranges"), segments)
    given |= {"sinks": sinks, "dlse": lse_cotangent, "totals": dtype == torch.float32}
    function = FUNCTIONS[kernel]
    absent = {name: None for name in function.arg_names if not given.get(name, True)}
    return _compile(function, dtype, constants | absent, capability, sizes.options)


def ptxas_log(code: Any, capability: int = 90) -> str:
    """Returns the report of Triton's ptxas: registers, spills and warnings."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "kernel.ptx")
        source.write_text(code.asm["ptx"], encoding="utf-8")
        arch = f"--gpu-name=sm_{capability}{'a' if capability >= 90 else ''}"
        command = [get_ptxas(capability).path, "-v", arch, str(source), "-o", str(source.with_suffix(".cubin"))]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def _compile(
    function: Any, dtype: torch.dtype, constants: dict[str, Any], capability: int, options: dict[str, int | bool]
) -> Any:
    signature = {
        name: "constexpr" if name in constants else TYPES_BY_NAME.get(name, TYPES[dtype]) for name in function.arg_names
    }
    # The same as in a launch: torch's allocator aligns every tensor, and long inputs have lengths
    # that are multiples of 16.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, type_) in enumerate(signature.items())
        if type_.startswith("*") or name in ("T", "S")
    }
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
