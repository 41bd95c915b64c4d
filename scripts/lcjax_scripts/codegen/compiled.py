"""A kernel compiled for a GPU by Pallas, Mosaic or Triton, as the report receives it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

HEAD_DIMS = (64, 80, 96, 128, 256)
ATTENTION_KERNELS = ("attention_forward", "attention_dq", "attention_dkv")
# "attention_backward" computes dq, dk and dv at once.
KERNELS = (*ATTENTION_KERNELS, "attention_backward", "rope")

# All kernels are compiled for one shape: the heads of Llama-3.1-8B, causal, one sequence.
TOKENS, HEADS, KEY_VALUE_HEADS = 8192, 32, 8


@dataclasses.dataclass(frozen=True)
class CompiledKernel:
    """One kernel's assembly and how it is launched."""

    kernel: str
    """One of KERNELS."""
    head_dim: int
    dtype: str
    """Of q, k and v: "bfloat16", "float16" or "float32"."""
    implementation: str
    """"pallas", "mosaic" or "triton"."""
    block: tuple[int, ...]
    """The block of one iteration: (queries, keys) of attention, or (heads,) of RoPE."""
    num_warps: int
    """Warps per program."""
    num_stages: int
    """Stages of the pipelined loop."""
    shared_memory: int
    """Static and dynamic bytes per program."""
    entry: str
    """The kernel's name in `ptx`."""
    ptx: str
    """The module that contains it."""


def save(kernels: Iterable[CompiledKernel], path: Path) -> None:
    path.write_text(json.dumps([dataclasses.asdict(kernel) for kernel in kernels]), encoding="utf-8")


def load(path: Path) -> list[CompiledKernel]:
    kernels = json.loads(path.read_text(encoding="utf-8"))
    return [CompiledKernel(**fields | {"block": tuple(fields["block"])}) for fields in kernels]
