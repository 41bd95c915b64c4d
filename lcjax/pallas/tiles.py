"""The one table of tiles: how each kernel cuts its work, by head_dim, size of an element, and the GPU's shared memory.

Those of two bytes for Hopper are the fastest of `scripts/bench_kernels.py --sweep` on an H200 at 16,384 tokens; the others were
chosen by registers and spills (`scripts/kernel_report.py`).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Tile:
    """Queries and keys a step, and how the GPU runs it: warps a program, stages of the pipelined loop."""

    query_block: int
    key_block: int
    num_warps: int
    num_stages: int


# By kernel, head_dim, bytes of an element.
TILES: dict[tuple[str, int, int], Tile] = {
    ("attention_forward", 64, 2): Tile(128, 64, 4, 3),
    ("attention_dq", 64, 2): Tile(128, 64, 8, 3),
    ("attention_dkv", 64, 2): Tile(64, 64, 4, 3),
    ("attention_forward", 128, 2): Tile(256, 64, 8, 3),
    ("attention_dq", 128, 2): Tile(128, 64, 8, 3),
    ("attention_dkv", 128, 2): Tile(64, 128, 8, 3),
    # Heads that are padded spill with the tile of 128.
    ("attention_forward", 80, 2): Tile(128, 64, 8, 3),
    ("attention_forward", 96, 2): Tile(128, 64, 8, 3),
    ("attention_forward", 256, 2): Tile(128, 32, 8, 3),
    ("attention_dq", 256, 2): Tile(128, 32, 8, 2),
    ("attention_dkv", 256, 2): Tile(64, 64, 8, 2),
    ("attention_forward", 64, 4): Tile(64, 32, 4, 2),
    ("attention_dq", 64, 4): Tile(64, 32, 4, 2),
    ("attention_dkv", 64, 4): Tile(32, 64, 4, 2),
    ("attention_forward", 128, 4): Tile(32, 32, 4, 2),
    ("attention_dq", 128, 4): Tile(32, 32, 4, 2),
    ("attention_dkv", 128, 4): Tile(32, 32, 4, 2),
    ("attention_forward", 256, 4): Tile(32, 16, 4, 1),
    ("attention_dq", 256, 4): Tile(32, 16, 4, 1),
    ("attention_dkv", 256, 4): Tile(16, 32, 4, 1),
}

# Where a program has less shared memory than on a data centre's Hopper or Blackwell: at most 99 KiB, what an RTX or L40S has.
SMALL_TILES: dict[tuple[str, int, int], Tile] = {
    ("attention_dkv", 64, 2): Tile(32, 128, 8, 3),
    ("attention_forward", 128, 2): Tile(128, 64, 8, 3),
    ("attention_dq", 128, 2): Tile(128, 32, 8, 3),
    ("attention_dkv", 128, 2): Tile(64, 64, 8, 2),
    ("attention_forward", 256, 2): Tile(32, 64, 4, 2),
    ("attention_dq", 256, 2): Tile(32, 32, 4, 2),
    ("attention_dkv", 256, 2): Tile(32, 32, 4, 2),
}
HOPPER_SHARED_MEMORY = 232_448
"""Bytes that one program may take on an H100."""

SMALLEST_HEAD_DIM = 16  # what a tensor core's product needs
LARGEST_HEAD_DIM = 256


def padded_head_dim(head_dim: int) -> int:
    """The power of two that a kernel computes with: 80 and 96 cost as much as 128."""
    return max(SMALLEST_HEAD_DIM, 1 << (head_dim - 1).bit_length())


def tile_for(kernel: str, head_dim: int, itemsize: int) -> Tile:
    """The tile for the GPU that kernels are traced for; a head_dim that is not in the table takes that of its padded size, at
    least 64.
    """
    padded = kernel, max(64, padded_head_dim(head_dim)), itemsize
    if shared_memory() < HOPPER_SHARED_MEMORY and padded in SMALL_TILES:
        return SMALL_TILES[padded]
    return TILES.get((kernel, head_dim, itemsize)) or TILES[padded]


_TRACED_FOR: contextvars.ContextVar[int | None] = contextvars.ContextVar("shared_memory", default=None)


def shared_memory() -> int:
    """Bytes of shared memory that a program may take on the GPU that is traced for: the one of `traced_for`, else this process'
    own, else an H100's.
    """
    told = _TRACED_FOR.get()
    if told is not None:
        return told
    if jax.default_backend() != "gpu":
        return HOPPER_SHARED_MEMORY
    return getattr(jax.local_devices()[0], "shared_memory_per_block_optin", HOPPER_SHARED_MEMORY)


def traced_for(device: Any) -> contextlib.AbstractContextManager[None]:
    """Kernels traced in this context get the tiles of that device, which need not be here."""
    return traced_with(getattr(device, "shared_memory_per_block_optin", None))


@contextlib.contextmanager
def traced_with(shared_memory: int | None = HOPPER_SHARED_MEMORY) -> Iterator[None]:
    """Kernels traced in this context get the tiles of a device with so many bytes of shared memory; none is asked for."""
    token = _TRACED_FOR.set(shared_memory)
    try:
        yield
    finally:
        _TRACED_FOR.reset(token)
