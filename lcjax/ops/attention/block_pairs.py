"""How blockwise attention cuts its sequences into blocks, and which pairs of blocks it visits.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, G query heads per
key/value head, D head_dim. q and k are the lengths of a block of queries and of keys. m = G q is
the number of rows of one block of queries for one key/value head. n counts blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.ops.attention.masks import Blocks, Mask

# Tokens. Small enough that the blocks' scores stay in a core's cache, large enough for products at
# full speed.
QUERY_BLOCK = 128
KEY_BLOCK = 256


@dataclasses.dataclass
class BlockPairs:
    """How the sequences are cut, and which blocks of queries see which blocks of keys."""

    of_mask: Mask
    blocks: Blocks
    kv_heads: int

    @classmethod
    def of(cls, mask: Mask, q_BTHD: jax.Array, k_BSKD: jax.Array) -> BlockPairs:
        batch, tokens, heads, _ = q_BTHD.shape
        keys = k_BSKD.shape[1]
        # Blocks of equal length, at most QUERY_BLOCK or KEY_BLOCK tokens.
        query_block = _ceil_div(tokens, _ceil_div(tokens, QUERY_BLOCK))
        key_block = _ceil_div(keys, _ceil_div(keys, KEY_BLOCK))
        return cls(mask, Blocks(batch, heads, tokens, keys, query_block, key_block), k_BSKD.shape[2])

    def __post_init__(self):
        some, _ = self.of_mask.bounds(self.blocks)
        self.visible = jnp.any(some, axis=(0, 1))
        self.keys_of_query = _first_and_last(self.visible)
        self.queries_of_key = _first_and_last(self.visible.T)

    @property
    def query_count(self) -> int:
        return self.blocks.query_count

    @property
    def key_count(self) -> int:
        return self.blocks.key_count

    @property
    def group(self) -> int:
        return self.blocks.heads // self.kv_heads

    def visit_keys(self, i: jax.Array, body: Callable, start: Any) -> Any:
        """Folds `body(j, carry)` over the blocks of keys that block i of queries sees."""
        return self._visit(self.keys_of_query, i, lambda j: self.visible[i, j], body, start)

    def visit_queries(self, j: jax.Array, body: Callable, start: Any) -> Any:
        """Folds `body(i, carry)` over the blocks of queries that see block j of keys."""
        return self._visit(self.queries_of_key, j, lambda i: self.visible[i, j], body, start)

    def _visit(self, ends, row, is_visible, body, start):
        if not self.of_mask.contiguous:
            visit, body = body, lambda n, carry: lax.cond(is_visible(n), visit, lambda n, carry: carry, n, carry)
        return lax.fori_loop(ends[0][row], ends[1][row], body, start)

    def of_heads(self, x_H: jax.Array) -> jax.Array:
        """One number per head, [H], repeated for each row: [B, K, m]."""
        x_KGq = jnp.broadcast_to(
            x_H.reshape(self.kv_heads, self.group, 1), (self.kv_heads, self.group, self.blocks.query_block)
        )
        return jnp.broadcast_to(x_KGq.reshape(1, self.kv_heads, -1), (self.blocks.batch, self.kv_heads, x_KGq[0].size))

    def split_queries(self, x_BTKGD: jax.Array) -> jax.Array:
        """[B, T, K, G, D] to [n, B, K, m, D]."""
        x_nBKGqD = jnp.moveaxis(_split(x_BTKGD, self.query_count), 2, 4)
        return x_nBKGqD.reshape(*x_nBKGqD.shape[:3], -1, x_nBKGqD.shape[5])

    def join_queries(self, x_nBKmD: jax.Array) -> jax.Array:
        """The inverse of `split_queries`."""
        x_nBKGqD = x_nBKmD.reshape(*x_nBKmD.shape[:3], -1, self.blocks.query_block, x_nBKmD.shape[4])
        return _join(jnp.moveaxis(x_nBKGqD, 4, 2), self.blocks.tokens)

    def join_rows(self, x_nBKm: jax.Array) -> jax.Array:
        """[n, B, K, m] to [B, H, T]."""
        x_BTKG1 = self.join_queries(x_nBKm[..., None])
        return jnp.moveaxis(x_BTKG1.reshape(*x_BTKG1.shape[:2], -1), 1, 2)

    def split_rows(self, x_BHT: jax.Array) -> jax.Array:
        """The inverse of `join_rows`; the values in padding are 0."""
        batch, _, tokens = x_BHT.shape
        x_BTKG1 = jnp.swapaxes(x_BHT, 1, 2).reshape(batch, tokens, self.kv_heads, self.group, 1)
        return self.split_queries(x_BTKG1)[..., 0]

    def split_keys(self, x_BSKD: jax.Array) -> jax.Array:
        """[B, S, K, D] to [n, B, K, k, D]."""
        return jnp.swapaxes(_split(x_BSKD, self.key_count), 2, 3)

    def join_keys(self, x_nBKkD: jax.Array) -> jax.Array:
        """The inverse of `split_keys`."""
        return _join(jnp.swapaxes(x_nBKkD, 2, 3), self.blocks.keys)

    def indices(self, i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The indices (b, h, q, k) of a pair of blocks; they broadcast to [B, K, G, q, k]."""
        b = jnp.arange(self.blocks.batch, dtype=jnp.int32).reshape(-1, 1, 1, 1, 1)
        h = jnp.arange(self.blocks.heads, dtype=jnp.int32).reshape(1, self.kv_heads, self.group, 1, 1)
        q = (i * self.blocks.query_block + jnp.arange(self.blocks.query_block)).reshape(1, 1, 1, -1, 1)
        k = (j * self.blocks.key_block + jnp.arange(self.blocks.key_block)).reshape(1, 1, 1, 1, -1)
        return b, h, q, k

    def mask(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """bool [B or 1, K or 1, m, k]: which keys of block j the queries of block i see."""
        indices = self.indices(i, j)
        visible = jnp.asarray(self.of_mask(*indices)) & (indices[3] < self.blocks.keys)
        batch, kv_heads, *_, keys = visible.shape
        visible = jnp.broadcast_to(visible, (batch, kv_heads, self.group, self.blocks.query_block, keys))
        return visible.reshape(batch, kv_heads, -1, keys)

    def modified(self, score_mod: Any, scores_BKmk: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        """The scores after `score_mod`, float32."""
        if score_mod is None:
            return scores_BKmk
        batch, kv_heads, _, keys = scores_BKmk.shape
        scores = scores_BKmk.reshape(batch, kv_heads, self.group, -1, keys)
        return score_mod(scores, *self.indices(i, j)).astype(jnp.float32).reshape(scores_BKmk.shape)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _split(x: jax.Array, count: int) -> jax.Array:
    """Cuts axis 1 into `count` equal blocks along a new first axis; zeros pad the last one."""
    block = _ceil_div(x.shape[1], count)
    missing = count * block - x.shape[1]
    if missing:
        x = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], count, block, *x.shape[2:]), 1, 0)


def _join(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `_split`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def _first_and_last(visible: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each row the range [first, last) that contains all its true entries; [0, 0) if none."""
    columns = jnp.arange(visible.shape[1], dtype=jnp.int32)
    last = jnp.max(jnp.where(visible, columns[None] + 1, 0), axis=1)
    first = jnp.min(jnp.where(visible, columns[None], visible.shape[1]), axis=1)
    return jnp.minimum(first, last), last
