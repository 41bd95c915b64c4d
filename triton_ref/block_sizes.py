"""The table of block sizes by kernel, padded head_dim and element size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
import triton

KERNELS = ("forward", "dq", "dkv")


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Queries and keys of an iteration (powers of two, at least 16), and Triton's options."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int

    def __post_init__(self):
        if any(n < 16 or n & (n - 1) for n in (self.queries, self.keys)):
            raise ValueError(f"a step of {self.queries} queries and {self.keys} keys: use powers of two, 16 at least")

    @property
    def options(self) -> dict[str, int | bool]:
        """Triton's compiler options. The default of fused multiply-add depends on the version."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


# Keys are (kernel, padded head_dim, bytes per element). For 64, 128 and 256 with two bytes, the
# sizes are the fastest in a sweep on an H100. The others are chosen by registers and shared memory.
BLOCK_SIZES = {
    ("forward", 16, 2): BlockSizes(128, 64, 4, 3),
    ("forward", 32, 2): BlockSizes(128, 64, 4, 3),
    ("forward", 64, 2): BlockSizes(128, 64, 8, 3),
    ("forward", 128, 2): BlockSizes(128, 128, 8, 3),
    ("forward", 256, 2): BlockSizes(128, 64, 8, 2),
    ("dq", 16, 2): BlockSizes(64, 64, 4, 2),
    ("dq", 32, 2): BlockSizes(64, 64, 4, 2),
    ("dq", 64, 2): BlockSizes(64, 64, 4, 3),
    ("dq", 128, 2): BlockSizes(128, 64, 8, 3),
    ("dq", 256, 2): BlockSizes(128, 32, 8, 3),
    ("dkv", 16, 2): BlockSizes(64, 64, 4, 3),
    ("dkv", 32, 2): BlockSizes(64, 64, 4, 3),
    ("dkv", 64, 2): BlockSizes(64, 64, 4, 3),
    ("dkv", 128, 2): BlockSizes(64, 128, 8, 3),
    ("dkv", 256, 2): BlockSizes(64, 64, 8, 2),
    ("forward", 16, 4): BlockSizes(64, 32, 4, 2),
    ("forward", 32, 4): BlockSizes(64, 32, 4, 2),
    ("forward", 64, 4): BlockSizes(64, 32, 8, 2),
    ("forward", 128, 4): BlockSizes(32, 16, 8, 2),
    ("forward", 256, 4): BlockSizes(32, 16, 8, 1),
    ("dq", 16, 4): BlockSizes(32, 32, 4, 2),
    ("dq", 32, 4): BlockSizes(32, 32, 4, 2),
    ("dq", 64, 4): BlockSizes(32, 32, 4, 2),
    ("dq", 128, 4): BlockSizes(32, 16, 8, 2),
    ("dq", 256, 4): BlockSizes(16, 16, 8, 1),
    ("dkv", 16, 4): BlockSizes(32, 32, 4, 2),
    ("dkv", 32, 4): BlockSizes(32, 32, 4, 2),
    ("dkv", 64, 4): BlockSizes(32, 32, 8, 2),
    ("dkv", 128, 4): BlockSizes(32, 16, 8, 2),
    ("dkv", 256, 4): BlockSizes(16, 16, 8, 1),
}


def padded(head_dim: int) -> int:
    """Returns the power of two, at least 16, to which a head is padded."""
    return max(16, triton.next_power_of_2(head_dim))


def block_sizes_for(
    kernel: str, head_dim: int, dtype: torch.dtype, block_sizes: Mapping[str, BlockSizes] | None = None
) -> BlockSizes:
    """Returns the block sizes of a kernel, from `block_sizes` if given, or else from the table."""
    if block_sizes is not None and kernel in block_sizes:
        return block_sizes[kernel]
    return BLOCK_SIZES[kernel, padded(head_dim), dtype.itemsize]
