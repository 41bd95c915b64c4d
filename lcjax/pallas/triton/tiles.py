"""The one table of tiles: how each kernel cuts its work, by head_dim, size of an element, and the GPU's shared memory.

Those of two bytes for Hopper are the fastest of `scripts/bench_kernels.py --sweep` on an H100 at 16,384 tokens, where two are close
the one that is faster beside the other kernels; the others were chosen by registers and spills (`scripts/kernel_report.py`).
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
class Tile:
    """Queries and keys a step, and how the GPU runs it: warps a program, stages of the pipelined loop."""

    query_block: int
    key_block: int
    num_warps: int
    num_stages: int
    drain: bool = False
    """Whether a step of `attention_forward` waits for the products of the one before (`launch.drained`); on Hopper alone."""
    frugal: bool = False
    """Whether `attention_forward` saves registers: it visits partly visible blocks in halves, since a mask needs them beside the
    scores, and computes the results' addresses anew."""
    heads_in_turn: bool = False
    """Whether the programs of one head of `attention_forward` run beside each other, and not those of all heads, so that one head's
    keys and values are read at a time; where there are `LONG_TURN` programs a head and more."""
    from_registers: bool = False
    """Whether tiles that stay enter their products from registers (`launch.in_registers`): keys and values of `attention_dkv`, dout
    of `attention_dq`; on Hopper alone, whose products otherwise take both operands from shared memory, and are bound by it."""


LONG_TURN = 64
"""Programs of a head, from which on a GPU is busy with one: fewer leave it idle at each turn's end."""

# By kernel, padded head_dim, bytes of an element.
TILES: dict[tuple[str, int, int], Tile] = {
    ("attention_forward", 64, 2): Tile(128, 128, 4, 3, drain=True, frugal=True),
    ("attention_dq", 64, 2): Tile(128, 64, 4, 3),
    ("attention_dkv", 64, 2): Tile(64, 64, 4, 3, from_registers=True),
    ("attention_forward", 128, 2): Tile(256, 64, 8, 4, drain=True),
    ("attention_dq", 128, 2): Tile(128, 64, 8, 3, from_registers=True),
    ("attention_dkv", 128, 2): Tile(64, 128, 8, 3),
    ("attention_forward", 256, 2): Tile(128, 64, 8, 2, heads_in_turn=True),
    ("attention_dq", 256, 2): Tile(128, 32, 8, 3),
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
    ("attention_forward", 64, 2): Tile(128, 64, 4, 3),
    ("attention_dq", 64, 2): Tile(128, 64, 8, 3),
    ("attention_dkv", 64, 2): Tile(32, 128, 8, 3),
    ("attention_forward", 128, 2): Tile(128, 64, 8, 3),
    ("attention_dq", 128, 2): Tile(128, 32, 8, 3),
    ("attention_dkv", 128, 2): Tile(64, 64, 8, 2),
    ("attention_forward", 256, 2): Tile(32, 64, 4, 2),
    ("attention_dq", 256, 2): Tile(32, 32, 4, 2),
    ("attention_dkv", 256, 2): Tile(32, 32, 4, 2),
}
# Where a program has as much as on Hopper, but needs more: Blackwell's products take both operands from shared memory.
BLACKWELL_TILES: dict[tuple[str, int, int], Tile] = {
    ("attention_forward", 64, 2): Tile(128, 64, 4, 3),
    ("attention_forward", 256, 2): Tile(128, 32, 8, 3),
    ("attention_dq", 256, 2): Tile(128, 32, 8, 2),
    ("attention_dkv", 256, 2): Tile(32, 64, 8, 2),
}

SMALLEST_HEAD_DIM = 16  # what a tensor core's product needs
LARGEST_HEAD_DIM = 256


def padded_head_dim(head_dim: int) -> int:
    """The power of two that a kernel computes with: 80 and 96 cost as much as 128."""
    return max(SMALLEST_HEAD_DIM, 1 << (head_dim - 1).bit_length())


class Gpu(NamedTuple):
    """What of a GPU the choice of a tile depends on."""

    shared_memory: int
    """Bytes that one program may take."""
    compute_capability: str
    """E.g. "9.0", which is Hopper's."""

    @property
    def is_hopper(self) -> bool:
        return self.compute_capability.startswith("9.")


H100 = Gpu(232_448, "9.0")


def tile_for(kernel: str, head_dim: int, itemsize: int) -> Tile:
    """The tile for the GPU that kernels are traced for, by the head_dim's padded size, at least 64."""
    gpu = traced_gpu()
    key = kernel, max(64, padded_head_dim(head_dim)), itemsize
    if gpu.is_hopper:
        return TILES[key]
    others = SMALL_TILES if gpu.shared_memory < H100.shared_memory else BLACKWELL_TILES
    return dataclasses.replace(others.get(key, TILES[key]), drain=False, from_registers=False)


_TRACED_FOR: contextvars.ContextVar[Gpu | None] = contextvars.ContextVar("gpu", default=None)


def traced_gpu() -> Gpu:
    """The GPU that is traced for: the one of `traced_for`, else this process' own, else an H100."""
    told = _TRACED_FOR.get()
    if told is not None:
        return told
    return H100 if jax.default_backend() != "gpu" else _gpu_of(this_device())


def traced_for(device: Any) -> contextlib.AbstractContextManager[None]:
    """Kernels traced in this context get the tiles of that device, which need not be here."""
    return traced_with(_gpu_of(device))


@contextlib.contextmanager
def traced_with(gpu: Gpu = H100) -> Iterator[None]:
    """Kernels traced in this context get the tiles of such a GPU; no device is asked for."""
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
