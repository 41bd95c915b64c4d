"""Which blocks of the score matrix a kernel visits, and in which of them it must evaluate the mask.

A row of blocks is a block of queries, or a block of keys in dk/dv. For every row a schedule lists
the full blocks, where every pair is visible, and the partial ones. Masks whose visible blocks are
adjacent need four numbers per row, O(T) in total. All other masks need lists.

Shapes: N rows, M columns of blocks; the leading axes B and H are 1 if the mask does not depend on
them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from lcjax.ops.attention.masks import Blocks, Mask

# (the number of blocks, a function that returns the column of the n-th block)
Visits = tuple[jax.Array, Callable[[jax.Array], jax.Array]]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Ranges:
    """Row r visits columns `first..last`, of which `full_first..full_last` are full.

    `ends` has these four numbers, int32 [B, H, N, 4].
    """

    ends: Any

    @property
    def is_of_all_heads(self) -> bool:
        return self.ends.shape[1] == 1

    def full(self, b, h, row) -> Visits:
        first = self.ends[b, h, row, 1]
        return self.ends[b, h, row, 2] - first, lambda n: first + n

    def partial(self, b, h, row) -> Visits:
        first, full_first, full_last, last = (self.ends[b, h, row, n] for n in range(4))
        before = full_first - first
        return before + (last - full_last), lambda n: jnp.where(n < before, first + n, full_last + (n - before))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Lists:
    """Row r visits `columns[r]`, the full ones first.

    `counts` has the numbers of full and partial blocks, int32 [B, H, N, 2]; `columns` is int32
    [B, H, N, M].
    """

    counts: Any
    columns: Any

    @property
    def is_of_all_heads(self) -> bool:
        return self.counts.shape[1] == 1

    def full(self, b, h, row) -> Visits:
        return self.counts[b, h, row, 0], lambda n: self.columns[b, h, row, n]

    def partial(self, b, h, row) -> Visits:
        full = self.counts[b, h, row, 0]
        return self.counts[b, h, row, 1], lambda n: self.columns[b, h, row, full + n]


Schedule = Ranges | Lists


def schedule(mask: Mask, blocks: Blocks, *, rows: str) -> Schedule:
    """The schedule of a mask; `rows` is "queries" or "keys".

    A last column that extends beyond the end of the sequence counts as partial, so full blocks need
    no bounds check.
    """
    some, every = mask.bounds(blocks)
    columns, column_block, length = blocks.key_count, blocks.key_block, blocks.keys
    if rows == "keys":
        some, every = jnp.swapaxes(some, 2, 3), jnp.swapaxes(every, 2, 3)
        columns, column_block, length = blocks.query_count, blocks.query_block, blocks.tokens
    every = every & some & ((jnp.arange(columns) + 1) * column_block <= length)[None, None, None]
    return _ranges(some, every) if mask.contiguous else _lists(some, every)


def _ranges(some: jax.Array, every: jax.Array) -> Ranges:
    columns = jnp.arange(some.shape[-1], dtype=jnp.int32)
    last = jnp.max(jnp.where(some, columns[None, None, None] + 1, 0), axis=-1)
    first = jnp.minimum(_first(some), last)
    # Ids that are not in order can leave a gap in the full blocks. Those after the gap count as
    # partial.
    full_first = jnp.minimum(_first(every), last)
    gap = ~every & (columns[None, None, None] >= full_first[..., None])
    full_last = jnp.minimum(_first(gap), last)
    return Ranges(jnp.stack([first, full_first, full_last, last], axis=-1))


def _first(flags: jax.Array) -> jax.Array:
    """The first true column of every row, or M if there is none."""
    columns = jnp.arange(flags.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(flags, columns[None, None, None], flags.shape[-1]), axis=-1)


def _lists(some: jax.Array, every: jax.Array) -> Lists:
    kind = jnp.where(every, 0, jnp.where(some, 1, 2)).astype(jnp.int8)
    columns = jnp.argsort(kind, axis=-1, stable=True).astype(jnp.int32)
    counts = jnp.stack([jnp.sum(kind == n, axis=-1, dtype=jnp.int32) for n in (0, 1)], axis=-1)
    return Lists(counts, columns)
