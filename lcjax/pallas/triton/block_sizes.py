"""The table of block sizes: queries and keys per step, by kernel, head_dim, element size and GPU.

The 2-byte entries for Hopper are the fastest of `scripts/bench_kernels.py --sweep` on an H100 at
16,384 tokens. If two were close, the one that is faster together with the other kernels was chosen.
The other entries were chosen by registers and spills (`scripts/kernel_report.py`).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from lcjax.parallel.placement import this_device


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Queries and keys of a step, warps of a program, and stages of its pipelined loop."""

    query_block: int
    key_block: int
    num_warps: int
    num_stages: int
    wait_for_wgmma: bool = False
    """Whether a step of `attention_forward` waits for the products of the last one; Hopper only."""
    save_registers: bool = False
    """Whether `attention_forward` reduces its use of registers.

    It then visits partly visible blocks in two halves, since the mask needs registers in addition
    to the scores, and recomputes the addresses of its results.
    """
    one_head_at_a_time: bool = False
    """Whether the programs of one head of `attention_forward` run together, not those of all heads.

    The keys and values of only one head are then read at a time. This needs `MIN_PROGRAMS_PER_HEAD`
    programs per head.
    """
    from_registers: bool = False
    """Whether products use registers for operands that are loaded once (`launch.in_registers`).

    These are keys and values in `attention_dkv`, and dout in `attention_dq`. Only for Hopper, whose
    products otherwise read both operands from shared memory, which limits their speed.
    """


MIN_PROGRAMS_PER_HEAD = 64
"""The number of programs per head that keep a GPU busy; with fewer it idles between heads."""

# By kernel, padded head_dim, and bytes per element.
BLOCK_SIZES: dict[tuple[str, int, int], BlockSizes] = {
    ("attention_forward", 64, 2): BlockSizes(128, 128, 4, 3, wait_for_wgmma=True, save_registers=True),
    ("attention_dq", 64, 2): BlockSizes(128, 64, 4, 3),
    ("attention_dkv", 64, 2): BlockSizes(64, 64, 4, 3, from_registers=True),
    ("attention_forward", 128, 2): BlockSizes(256, 64, 8, 4, wait_for_wgmma=True),
    ("attention_dq", 128, 2): BlockSizes(128, 64, 8, 3, from_registers=True),
    ("attention_dkv", 128, 2): BlockSizes(64, 128, 8, 3),
    ("attention_forward", 256, 2): BlockSizes(128, 64, 8, 2, one_head_at_a_time=True),
    ("attention_dq", 256, 2): BlockSizes(128, 32, 8, 3),
    ("attention_dkv", 256, 2): BlockSizes(64, 64, 8, 2),
    ("attention_forward", 64, 4): BlockSizes(64, 32, 4, 2),
    ("attention_dq", 64, 4): BlockSizes(64, 32, 4, 2),
    ("attention_dkv", 64, 4): BlockSizes(32, 64, 4, 2),
    ("attention_forward", 128, 4): BlockSizes(32, 32, 4, 2),
    ("attention_dq", 128, 4): BlockSizes(32, 32, 4, 2),
    ("attention_dkv", 128, 4): BlockSizes(32, 32, 4, 2),
    ("attention_forward", 256, 4): BlockSizes(32, 16, 4, 1),
    ("attention_dq", 256, 4): BlockSizes(32, 16, 4, 1),
    ("attention_dkv", 256, 4): BlockSizes(16, 32, 4, 1),
}

# For GPUs with less shared memory per program than Hopper or Blackwell in a data center: at most 99
# KiB, as on an RTX or L40S.
SMALL_BLOCK_SIZES: dict[tuple[str, int, int], BlockSizes] = {
    ("attention_forward", 64, 2): BlockSizes(128, 64, 4, 3),
    ("attention_dq", 64, 2): BlockSizes(128, 64, 8, 3),
    ("attention_dkv", 64, 2): BlockSizes(32, 128, 8, 3),
    ("attention_forward", 128, 2): BlockSizes(128, 64, 8, 3),
    ("attention_dq", 128, 2): BlockSizes(128, 32, 8, 3),
    ("attention_dkv", 128, 2): BlockSizes(64, 64, 8, 2),
    ("attention_forward", 256, 2): BlockSizes(32, 64, 4, 2),
    ("attention_dq", 256, 2): BlockSizes(32, 32, 4, 2),
    ("attention_dkv", 256, 2): BlockSizes(32, 32, 4, 2),
}
# For Blackwell, which has as much shared memory per program as Hopper but needs more: its matrix
# products read both operands from shared memory.
BLACKWELL_BLOCK_SIZES: dict[tuple[str, int, int], BlockSizes] = {
    ("attention_forward", 64, 2): BlockSizes(128, 64, 4, 3),
    ("attention_forward", 256, 2): BlockSizes(128, 32, 8, 3),
    ("attention_dq", 256, 2): BlockSizes(128, 32, 8, 2),
    ("attention_dkv", 256, 2): BlockSizes(32, 64, 8, 2),
}

SMALLEST_HEAD_DIM = 16  # the minimum of a tensor core product
LARGEST_HEAD_DIM = 256


def padded_head_dim(head_dim: int) -> int:
    """The power of two that a kernel computes with: 80 and 96 cost as much as 128."""
    return max(SMALLEST_HEAD_DIM, 1 << (head_dim - 1).bit_length())


class Gpu(NamedTuple):
    """The properties of a GPU that determine the block sizes."""

    shared_memory: int
    """Shared memory that one program may use, in bytes."""
    compute_capability: str
    """The compute capability, e.g. "9.0" for Hopper."""

    @property
    def is_hopper(self) -> bool:
        return self.compute_capability.startswith("9.")


H100 = Gpu(232_448, "9.0")


def block_sizes_for(kernel: str, head_dim: int, itemsize: int) -> BlockSizes:
    """The block sizes for the GPU that kernels are traced for, by padded head_dim, at least 64."""
    gpu = traced_gpu()
    key = kernel, max(64, padded_head_dim(head_dim)), itemsize
    if gpu.is_hopper:
        return BLOCK_SIZES[key]
    others = SMALL_BLOCK_SIZES if gpu.shared_memory < H100.shared_memory else BLACKWELL_BLOCK_SIZES
    return dataclasses.replace(others.get(key, BLOCK_SIZES[key]), wait_for_wgmma=False, from_registers=False)


_TRACED_FOR: contextvars.ContextVar[Gpu | None] = contextvars.ContextVar("gpu", default=None)


def traced_gpu() -> Gpu:
    """The GPU of `traced_for`, otherwise this process's GPU, otherwise an H100."""
    gpu = _TRACED_FOR.get()
    if gpu is not None:
        return gpu
    return H100 if jax.default_backend() != "gpu" else _gpu_of(this_device())


def is_traced_for_gpu() -> bool:
    """Whether kernels are traced for a GPU that need not be present."""
    return _TRACED_FOR.get() is not None


def traced_for(device: Any) -> contextlib.AbstractContextManager[None]:
    """A context that traces kernels with the block sizes of a device, which need not be present."""
    return traced_with(_gpu_of(device))


@contextlib.contextmanager
def traced_with(gpu: Gpu = H100) -> Iterator[None]:
    """A context that traces kernels with the block sizes of such a GPU, without any device."""
    token = _TRACED_FOR.set(gpu)
    try:
        yield
    finally:
        _TRACED_FOR.reset(token)


def _gpu_of(device: Any) -> Gpu:
    return Gpu(
        getattr(device, "shared_memory_per_block_optin", None) or H100.shared_memory,
        getattr(device, "compute_capability", None) or H100.compute_capability,
    )
