"""A kernel compiled for a GPU, whoever compiled it: what Pallas' and Triton's processes hand to the report."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

HEAD_DIMS = (64, 80, 96, 128, 256)
ATTENTION_KERNELS = ("attention_forward", "attention_dq", "attention_dkv")
KERNELS = (*ATTENTION_KERNELS, "rope")

# The shape that everything is compiled for: Llama-3.1-8B's heads, causal, one sequence.
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
    """"pallas" or "triton"."""
    block: tuple[int, ...]
    """What one step computes: (queries, keys) of attention, (heads,) of RoPE, of one token each."""
    num_warps: int
    """Of a program."""
    num_stages: int
    """Of the pipelined loop."""
    shared_memory: int
    """Bytes a program, static and dynamic."""
    entry: str
    """The kernel's name in `ptx`."""
    ptx: str
    """The module that contains it."""


def save(kernels: Iterable[CompiledKernel], path: Path) -> None:
    path.write_text(json.dumps([dataclasses.asdict(kernel) for kernel in kernels]), encoding="utf-8")


def load(path: Path) -> list[CompiledKernel]:
    kernels = json.loads(path.read_text(encoding="utf-8"))
    return [CompiledKernel(**fields | {"block": tuple(fields["block"])}) for fields in kernels]
