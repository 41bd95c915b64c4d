"""Attention masks: one mechanism for causal, window, document and user-written masks.

A mask answers two questions. `mask(b, h, q, k)` returns, for pairs of tokens, whether the query
sees the key. `bounds` returns, for whole blocks of the score matrix, whether some pair and whether
every pair in the block is visible. Kernels skip blocks without a visible pair, and evaluate the
mask only in blocks where some pairs are visible and others are not. Masks combine with `&` and `|`.

Inside a kernel a mask's arrays are tables in device memory. A mask may only index them, with one
scalar per element.

Shapes: B batch, H query heads, T query tokens, S key tokens, N blocks of queries, M blocks of keys.
The indices b, h, q, k are int32 scalars or arrays of equal rank that broadcast.
Source: Dong et al., FlexAttention, arXiv 2412.05496.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial, register_dataclass


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How the [T, S] scores are cut into blocks; the last block may extend beyond its axis."""

    batch: int
    heads: int
    tokens: int
    keys: int
    query_block: int
    key_block: int

    @property
    def query_count(self) -> int:
        return -(-self.tokens // self.query_block)

    @property
    def key_count(self) -> int:
        return -(-self.keys // self.key_block)

    def query_ends(self) -> tuple[jax.Array, jax.Array]:
        """The first and the last query of every block, int32 [1, 1, N, 1] each."""
        first, last = _ends(self.query_count, self.query_block, self.tokens)
        return first[None, None, :, None], last[None, None, :, None]

    def key_ends(self) -> tuple[jax.Array, jax.Array]:
        """The first and the last key of every block, int32 [1, 1, 1, M] each."""
        first, last = _ends(self.key_count, self.key_block, self.keys)
        return first[None, None, None, :], last[None, None, None, :]


# (some pair is visible, every pair is visible), bool [B or 1, H or 1, N, M] each. `some` may be
# True where no pair is visible, and `every` False where all are: that costs time, not correctness.
Bounds = tuple[jax.Array, jax.Array]


class Mask:
    """The interface: `mask(b, h, q, k)` and `mask.bounds(blocks)`."""

    @property
    def contiguous(self) -> bool:
        """Whether the visible blocks of each row and each column are adjacent.

        Kernels need lists of the visible blocks if they are not. Document ids in no particular
        order count as contiguous: the blocks between are visited without need.
        """
        return True

    def __call__(self, b: Any, h: Any, q: Any, k: Any) -> Any:
        raise NotImplementedError

    def bounds(self, blocks: Blocks) -> Bounds:
        raise NotImplementedError

    def __and__(self, other: Mask) -> Mask:
        return AllOf((self, other))

    def __or__(self, other: Mask) -> Mask:
        return AnyOf((self, other))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Band(Mask):
    """The keys from `before - 1` tokens before the query to `after` tokens after it.

    The query's own key index is `q + offset`. Causal attention is `after=0`, a sliding window of w
    keys `before=w`. None means no limit on that side. `offset` is a traced int32 [1] for a value
    that is known only at run time; then `static_offset` is not used.
    """

    before: int | None = dataclasses.field(default=None, metadata={"static": True})
    after: int | None = dataclasses.field(default=None, metadata={"static": True})
    static_offset: int = dataclasses.field(default=0, metadata={"static": True})
    offset: jax.Array | None = None

    def __call__(self, b, h, q, k):
        return self._visible(k - q, k - q)

    def bounds(self, blocks) -> Bounds:
        first_query, last_query = blocks.query_ends()
        first_key, last_key = blocks.key_ends()
        nearest, furthest = first_key - last_query, last_key - first_query
        # A block contains every distance in this range, so some pair is visible exactly where the
        # range overlaps the band.
        return self._visible(furthest, nearest), self._visible(nearest, furthest)

    def _visible(self, distance, later_distance) -> Any:
        """Whether `k - q` is inside the band, with one distance for each of its two limits."""
        offset = self.static_offset if self.offset is None else self.offset[0]
        not_before = True if self.before is None else distance > offset - self.before
        not_after = True if self.after is None else later_distance <= offset + self.after
        return not_before & not_after


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Documents(Mask):
    """A query sees the keys of its own document: int32 ids [B, T] and [B, S], in any order."""

    query_ids: jax.Array
    key_ids: jax.Array

    def __call__(self, b, h, q, k):
        return self.query_ids[b, q] == self.key_ids[b, k]

    def bounds(self, blocks):
        """Blocks with disjoint ranges of ids share no document; exact for ascending ids."""
        low, high = (x[:, None, :, None] for x in _extremes(self.query_ids, blocks.query_count, blocks.query_block))
        key_low, key_high = (x[:, None, None, :] for x in _extremes(self.key_ids, blocks.key_count, blocks.key_block))
        some = (low <= key_high) & (key_low <= high)
        return some, (low == high) & (key_low == key_high) & (low == key_low)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Function(Mask):
    """A user's mask, created by `function`.

    Its bounds come from evaluating every pair, in O(T S) time and O(S) memory. This takes one
    percent of the time of attention itself.
    """

    mod: Partial

    @property
    def contiguous(self) -> bool:
        return False

    def __call__(self, b, h, q, k):
        return self.mod(b, h, q, k)

    def bounds(self, blocks):
        b = jnp.arange(blocks.batch, dtype=jnp.int32)[:, None, None, None]
        h = jnp.arange(blocks.heads, dtype=jnp.int32)[None, :, None, None]
        # Indices beyond the end repeat the last token, which changes neither "some" nor "every".
        k = jnp.minimum(jnp.arange(blocks.key_count * blocks.key_block, dtype=jnp.int32), blocks.keys - 1)

        def one_query_block(i):
            q = jnp.minimum(i * blocks.query_block + jnp.arange(blocks.query_block), blocks.tokens - 1)
            visible = jnp.asarray(self.mod(b, h, q[None, None, :, None], k[None, None, None, :]), bool)
            leading = visible.shape[:2] if visible.ndim == 4 else (1, 1)
            visible = jnp.broadcast_to(visible, (*leading, blocks.query_block, k.size))
            visible = visible.reshape(*leading, blocks.query_block, blocks.key_count, blocks.key_block)
            return visible.any(axis=(2, 4)), visible.all(axis=(2, 4))

        some, every = lax.map(one_query_block, jnp.arange(blocks.query_count, dtype=jnp.int32))
        return jnp.moveaxis(some, 0, 2), jnp.moveaxis(every, 0, 2)


def function(mask_mod: Callable[..., Any]) -> Mask:
    """The mask of a traceable `mask_mod(b, h, q_idx, kv_idx) -> bool`; returns a mask unchanged.

    If it reads arrays, they are its first arguments, bound by `jax.tree_util.Partial(mask_mod,
    *arrays)`. It may only index them.
    """
    if isinstance(mask_mod, Mask):
        return mask_mod
    return Function(mask_mod if isinstance(mask_mod, Partial) else Partial(mask_mod))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class AllOf(Mask):
    """A pair is visible if it is visible under every mask; with no masks every pair is visible."""

    masks: tuple[Mask, ...] = ()

    @property
    def contiguous(self) -> bool:
        return all(mask.contiguous for mask in self.masks)

    def __call__(self, b, h, q, k):
        return functools.reduce(operator.and_, (mask(b, h, q, k) for mask in self.masks), True)

    def bounds(self, blocks):
        some = every = jnp.ones((1, 1, blocks.query_count, blocks.key_count), bool)
        for mask in self.masks:
            mask_some, mask_every = mask.bounds(blocks)
            some, every = some & mask_some, every & mask_every
        return some, every


@register_dataclass
@dataclasses.dataclass(frozen=True)
class AnyOf(Mask):
    """A pair is visible if it is visible under at least one of the masks."""

    masks: tuple[Mask, ...] = ()

    @property
    def contiguous(self) -> bool:
        return False

    def __call__(self, b, h, q, k):
        return functools.reduce(operator.or_, (mask(b, h, q, k) for mask in self.masks), False)

    def bounds(self, blocks):
        some = every = jnp.zeros((1, 1, blocks.query_count, blocks.key_count), bool)
        for mask in self.masks:
            mask_some, mask_every = mask.bounds(blocks)
            some, every = some | mask_some, every | mask_every
        return some, every


def _ends(count: int, block: int, length: int) -> tuple[jax.Array, jax.Array]:
    first = jnp.arange(count, dtype=jnp.int32) * block
    return first, jnp.minimum(first + (block - 1), length - 1)


def _extremes(ids_BT: jax.Array, count: int, block: int) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest id of every block, [B, count] each."""
    missing = count * block - ids_BT.shape[1]
    blocks = jnp.pad(ids_BT, ((0, 0), (0, missing)), mode="edge").reshape(ids_BT.shape[0], count, block)
    return blocks.min(axis=2), blocks.max(axis=2)
