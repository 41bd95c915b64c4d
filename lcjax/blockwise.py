"""Attention in plain XLA, block by block: O(T) memory forward and backward on any device.

Two nested loops over blocks of queries and blocks of keys with a running softmax; the loops leave out blocks that the mask hides
altogether. The backward pass computes the probabilities again from the
log-sum-exp, in one sweep for dq, dk and dv.

Source: Dao, FlashAttention-2, arXiv 2307.08691; Rabe & Staats, arXiv 2112.05682.
Shapes: B batch, T query tokens, S key tokens, K key/value heads, G query heads a key/value head, D head_dim; q and k are the
lengths of a block of queries and of keys, m = G q the rows of one block of queries under one key/value head; n counts blocks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.masks import Blocks, Mask
from lcjax.remat import ATTENTION_LSE, ATTENTION_OUTPUT, name_residual

# Tokens. Small enough that the blocks' scores stay in a core's cache, large enough for products at full speed.
QUERY_BLOCK = 128
KEY_BLOCK = 256
# XLA's products on a CPU add up one term after another. From the sum dout v its delta is subtracted, which is about as large:
# over 128 terms the chain's rounding left dq with 1.2 times the error that the tolerance rule allows, over two of 64 with 0.5.
LONGEST_SUM = 64


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blockwise_attention(
    scale: float,
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    sinks_H: jax.Array | None,
    mask: Mask,
    score_mod: Any,
) -> tuple[jax.Array, jax.Array]:
    """The operation of `lcjax.ops.attention`: (out, lse float32 [B, H, T]); scores and sums are float32.

    Largest safe size: 2^31 - 1 tokens a sequence. Differentiable in q, k, v and sinks; the arrays of mask and score_mod are
    constants.
    """
    return _forward(scale, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod)[0]


def _forward(scale, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod):
    blocks = _BlockPairs.of(mask, q_BTHD, k_BSKD)
    q_n = blocks.split_queries(_group_heads(q_BTHD, blocks.kv_heads))
    k_n, v_n = blocks.split_keys(k_BSKD), blocks.split_keys(v_BSKD)

    def one_query_block(_, i):
        q_BKmD = q_n[i]

        def one_key_block(j, carry):
            accumulated, maximum, total = carry
            scores = blocks.modified(score_mod, _dot("bkmd,bksd->bkms", q_BKmD, k_n[j]) * scale, i, j)
            scores = jnp.where(blocks.mask(i, j), scores, -jnp.inf)
            new_maximum = jnp.maximum(maximum, scores.max(axis=-1))
            # A row that has seen no key yet has maximum -inf; 0 in its place keeps exp(-inf - 0) = 0 instead of nan.
            shift = jnp.where(new_maximum == -jnp.inf, 0.0, new_maximum)
            weights = jnp.exp(scores - shift[..., None])
            rescale = jnp.exp(maximum - shift)
            total = total * rescale + weights.sum(axis=-1)
            update = _dot("bkms,bksd->bkmd", weights.astype(v_n.dtype), v_n[j])
            return accumulated * rescale[..., None] + update, new_maximum, total

        rows = q_BKmD.shape[:-1]
        if sinks_H is None:
            maximum, total = jnp.full(rows, -jnp.inf), jnp.zeros(rows)
        else:  # a sink is a key that every query has seen, with the value 0
            maximum, total = blocks.of_heads(sinks_H), jnp.ones(rows)
        start = jnp.zeros(q_BKmD.shape, jnp.float32), maximum, total
        accumulated, maximum, total = blocks.visit_keys(i, one_key_block, start)
        seen = total > 0
        out = accumulated / jnp.where(seen, total, 1.0)[..., None]
        # +inf for a row without keys makes its probabilities exp(s - inf) = 0 in the backward pass.
        maximum = jnp.where(seen, maximum, jnp.inf)
        return None, (out.astype(q_BTHD.dtype), maximum, jnp.log(jnp.where(seen, total, 1.0)))

    _, (out_n, maximum_n, log_total_n) = lax.scan(one_query_block, None, jnp.arange(blocks.query_count))
    out_BTHD = name_residual(blocks.join_queries(out_n).reshape(q_BTHD.shape), ATTENTION_OUTPUT)
    # The log-sum-exp in its two parts: their float32 sum would round away what tells large scores apart.
    lse_n = name_residual(maximum_n, ATTENTION_LSE), name_residual(log_total_n, ATTENTION_LSE)
    lse_BHT = blocks.join_rows(jnp.where(jnp.isposinf(maximum_n), -jnp.inf, maximum_n + log_total_n))
    return (out_BTHD, lse_BHT), (q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod, out_BTHD, lse_n)


def _backward(scale, residuals, cotangents):
    q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod, out_BTHD, (maximum_n, log_total_n) = residuals
    dout_BTHD, dlse_BHT = cotangents
    blocks = _BlockPairs.of(mask, q_BTHD, k_BSKD)
    out_32, dout_32 = out_BTHD.astype(jnp.float32), dout_BTHD.astype(jnp.float32)
    delta_BTH = jnp.einsum("bthd,bthd->bth", out_32, dout_32, precision="highest") - jnp.swapaxes(dlse_BHT, 1, 2)
    q_n = blocks.split_queries(_group_heads(q_BTHD, blocks.kv_heads))
    dout_n = blocks.split_queries(_group_heads(dout_BTHD, blocks.kv_heads))
    delta_n = blocks.split_queries(_group_heads(delta_BTH[..., None], blocks.kv_heads))
    k_n, v_n = blocks.split_keys(k_BSKD), blocks.split_keys(v_BSKD)

    def one_key_block(dq_n, j):
        k_BKsD, v_BKsD = k_n[j], v_n[j]

        def one_query_block(i, carry):
            dq_n, dk, dv = carry
            scores, modification = _dot("bkmd,bksd->bkms", q_n[i], k_BKsD) * scale, None
            if score_mod is not None:
                scores, modification = jax.vjp(lambda s: blocks.modified(score_mod, s, i, j), scores)
            # Masked before the exponential, which XLA computes in one pass only where nothing but products follows.
            scores = jnp.where(blocks.mask(i, j), scores, -jnp.inf)
            weights = jnp.exp(scores - maximum_n[i][..., None] - log_total_n[i][..., None])
            dweights = _dot_in_parts(dout_n[i], v_BKsD)
            dscores = weights * (dweights - delta_n[i])
            if modification is not None:
                (dscores,) = modification(dscores)
            dscores = dscores.astype(q_BTHD.dtype)
            # dk and dv gather as [D, k]: that orientation of the product is a third faster on a CPU.
            dv = dv + _dot("bkms,bkmd->bkds", weights.astype(dout_n.dtype), dout_n[i])
            dk = dk + _dot("bkms,bkmd->bkds", dscores, q_n[i])
            dq = lax.dynamic_index_in_dim(dq_n, i, keepdims=False) + _dot("bkms,bksd->bkmd", dscores, k_BKsD)
            return lax.dynamic_update_index_in_dim(dq_n, dq, i, axis=0), dk, dv

        zeros = jnp.zeros(jnp.swapaxes(k_BKsD, 2, 3).shape, jnp.float32)
        dq_n, dk, dv = blocks.visit_queries(j, one_query_block, (dq_n, zeros, zeros))
        # The scale of the scores enters dq and dk once, at the end.
        return dq_n, tuple(jnp.swapaxes(g, 2, 3).astype(k_BSKD.dtype) for g in (dk * scale, dv))

    dq_n, (dk_n, dv_n) = lax.scan(one_key_block, jnp.zeros(q_n.shape, jnp.float32), jnp.arange(blocks.key_count))
    dq_BTHD = blocks.join_queries(dq_n * scale).reshape(q_BTHD.shape).astype(q_BTHD.dtype)
    dsinks_H = None
    if sinks_H is not None:
        weights_BHT = blocks.join_rows(jnp.exp(blocks.of_heads(sinks_H) - maximum_n - log_total_n))
        dsinks_H = -jnp.einsum("bht,bth->h", weights_BHT, delta_BTH, precision="highest")
    return dq_BTHD, blocks.join_keys(dk_n), blocks.join_keys(dv_n), dsinks_H, None, None


blockwise_attention.defvjp(_forward, _backward)


@dataclasses.dataclass
class _BlockPairs:
    """How the sequences are cut, and which pairs of blocks can see each other."""

    of_mask: Mask
    blocks: Blocks
    kv_heads: int

    @classmethod
    def of(cls, mask: Mask, q_BTHD: jax.Array, k_BSKD: jax.Array) -> _BlockPairs:
        batch, tokens, heads, _ = q_BTHD.shape
        keys = k_BSKD.shape[1]
        # Equal blocks, none longer than its bound.
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
        """Folds `body(j, carry)` over the blocks of keys that block i of the queries sees."""
        return self._visit(self.keys_of_query, i, lambda j: self.visible[i, j], body, start)

    def visit_queries(self, j: jax.Array, body: Callable, start: Any) -> Any:
        """Folds `body(i, carry)` over the blocks of queries that see block j of the keys."""
        return self._visit(self.queries_of_key, j, lambda i: self.visible[i, j], body, start)

    def _visit(self, ends, row, is_visible, body, start):
        if not self.of_mask.contiguous:
            visit, body = body, lambda n, carry: lax.cond(is_visible(n), visit, lambda n, carry: carry, n, carry)
        return lax.fori_loop(ends[0][row], ends[1][row], body, start)

    def of_heads(self, x_H: jax.Array) -> jax.Array:
        """A number a head as [B, K, m]."""
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

    def split_keys(self, x_BSKD: jax.Array) -> jax.Array:
        """[B, S, K, D] to [n, B, K, k, D]."""
        return jnp.swapaxes(_split(x_BSKD, self.key_count), 2, 3)

    def join_keys(self, x_nBKkD: jax.Array) -> jax.Array:
        """The inverse of `split_keys`."""
        return _join(jnp.swapaxes(x_nBKkD, 2, 3), self.blocks.keys)

    def indices(self, i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """(b, h, q, k) of the scores of a pair of blocks, as [B, K, G, q, k] broadcast."""
        b = jnp.arange(self.blocks.batch, dtype=jnp.int32).reshape(-1, 1, 1, 1, 1)
        h = jnp.arange(self.blocks.heads, dtype=jnp.int32).reshape(1, self.kv_heads, self.group, 1, 1)
        q = (i * self.blocks.query_block + jnp.arange(self.blocks.query_block)).reshape(1, 1, 1, -1, 1)
        k = (j * self.blocks.key_block + jnp.arange(self.blocks.key_block)).reshape(1, 1, 1, 1, -1)
        return b, h, q, k

    def mask(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """bool [B or 1, K or 1, m, k]: what the queries of block i see of the keys of block j."""
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


def _dot(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    # float32 in full: a GPU's default would round the operands to TF32.
    precision = "highest" if x.dtype == jnp.float32 else None
    return jnp.einsum(equation, x, y, precision=precision, preferred_element_type=jnp.float32)


def _dot_in_parts(x_BKmD: jax.Array, y_BKsD: jax.Array) -> jax.Array:
    """[B, K, m, s], in float32 at most LONGEST_SUM terms in one chain of additions."""
    width = x_BKmD.shape[-1]
    part = min(LONGEST_SUM, width) if x_BKmD.dtype == jnp.float32 else width
    return functools.reduce(
        jnp.add,
        [_dot("bkmd,bksd->bkms", x_BKmD[..., d : d + part], y_BKsD[..., d : d + part]) for d in range(0, width, part)],
    )


def _group_heads(x_BTHD: jax.Array, kv_heads: int) -> jax.Array:
    batch, tokens, heads, width = x_BTHD.shape
    return x_BTHD.reshape(batch, tokens, kv_heads, heads // kv_heads, width)


def _split(x: jax.Array, count: int) -> jax.Array:
    """Cuts axis 1 into `count` equal blocks, stacked in front; zeros fill the last one up."""
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
    """For each row the range [first, last) that holds all its true entries; empty rows give [0, 0)."""
    columns = jnp.arange(visible.shape[1], dtype=jnp.int32)
    last = jnp.max(jnp.where(visible, columns[None] + 1, 0), axis=1)
    first = jnp.min(jnp.where(visible, columns[None], visible.shape[1]), axis=1)
    return jnp.minimum(first, last), last
