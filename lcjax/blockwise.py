"""Attention in plain XLA, block by block: O(T) memory forward and backward on any device.

Two nested loops over blocks of queries and blocks of keys with a running softmax; the loops' bounds leave out blocks that
the causal mask or the segments hide altogether. The backward pass computes the probabilities again from the
log-sum-exp, in one sweep for dq, dk and dv.

Source: Dao, FlashAttention-2, arXiv 2307.08691; Rabe & Staats, arXiv 2112.05682.
Shapes: B batch, T query tokens, S key tokens, K key/value heads, G query heads a key/value head, D head_dim; q and k are the
lengths of a block of queries and of keys, m = G q the rows of one block of queries under one key/value head; n counts blocks.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.remat import ATTENTION_LSE, ATTENTION_OUTPUT, name_residual

# Tokens. Small enough that the blocks' scores stay in a core's cache, large enough for products at full speed.
QUERY_BLOCK = 128
KEY_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Masking:
    """What is static about a call: see `lcjax.ops.attention`. `query_offset` is the key index of query 0."""

    causal: bool
    query_offset: int
    scale: float


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blockwise_attention(
    masking: Masking,
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    query_segments_BT: jax.Array,
    key_segments_BS: jax.Array,
) -> jax.Array:
    """The operation of `lcjax.ops.attention`; scores and sums are float32. Any T and S, up to 2^31 - 1 tokens each."""
    return _forward(masking, q_BTHD, k_BSKD, v_BSKD, query_segments_BT, key_segments_BS)[0]


def _forward(masking, q_BTHD, k_BSKD, v_BSKD, query_segments_BT, key_segments_BS):
    blocks = _Blocks.of(masking, q_BTHD, k_BSKD, query_segments_BT, key_segments_BS)
    q_n = blocks.split_queries(_group_heads(q_BTHD, k_BSKD.shape[2]))
    k_n, v_n = blocks.split_keys(k_BSKD), blocks.split_keys(v_BSKD)

    def one_query_block(_, i):
        q_BKmD = q_n[i]

        def one_key_block(j, carry):
            accumulated, maximum, total = carry
            scores = _dot("bkmd,bksd->bkms", q_BKmD, k_n[j]) * masking.scale
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
        start = jnp.zeros(q_BKmD.shape, jnp.float32), jnp.full(rows, -jnp.inf), jnp.zeros(rows)
        first, last = blocks.keys_of_query[0][i], blocks.keys_of_query[1][i]
        accumulated, maximum, total = lax.fori_loop(first, last, one_key_block, start)
        seen = total > 0
        out = accumulated / jnp.where(seen, total, 1.0)[..., None]
        # +inf for a row without keys makes its probabilities exp(s - inf) = 0 in the backward pass.
        maximum = jnp.where(seen, maximum, jnp.inf)
        return None, (out.astype(q_BTHD.dtype), maximum, jnp.log(jnp.where(seen, total, 1.0)))

    _, (out_n, maximum_n, log_total_n) = lax.scan(one_query_block, None, jnp.arange(blocks.query_count))
    out_BTHD = name_residual(blocks.join_queries(out_n).reshape(q_BTHD.shape), ATTENTION_OUTPUT)
    # The log-sum-exp in its two parts: their float32 sum would round away what tells large scores apart.
    lse_n = name_residual(maximum_n, ATTENTION_LSE), name_residual(log_total_n, ATTENTION_LSE)
    return out_BTHD, (q_BTHD, k_BSKD, v_BSKD, query_segments_BT, key_segments_BS, out_BTHD, lse_n)


def _backward(masking, residuals, dout_BTHD):
    q_BTHD, k_BSKD, v_BSKD, query_segments_BT, key_segments_BS, out_BTHD, (maximum_n, log_total_n) = residuals
    kv_heads = k_BSKD.shape[2]
    blocks = _Blocks.of(masking, q_BTHD, k_BSKD, query_segments_BT, key_segments_BS)
    out_32, dout_32 = out_BTHD.astype(jnp.float32), dout_BTHD.astype(jnp.float32)
    delta_BTH = jnp.einsum("bthd,bthd->bth", out_32, dout_32, precision="highest")
    q_n = blocks.split_queries(_group_heads(q_BTHD, kv_heads))
    dout_n = blocks.split_queries(_group_heads(dout_BTHD, kv_heads))
    delta_n = blocks.split_queries(_group_heads(delta_BTH[..., None], kv_heads))
    k_n, v_n = blocks.split_keys(k_BSKD), blocks.split_keys(v_BSKD)

    def one_key_block(dq_n, j):
        k_BKsD, v_BKsD = k_n[j], v_n[j]

        def one_query_block(i, carry):
            dq_n, dk, dv = carry
            scores = _dot("bkmd,bksd->bkms", q_n[i], k_BKsD) * masking.scale
            # Masked before the exponential, which XLA computes in one pass only where nothing but products follows.
            scores = jnp.where(blocks.mask(i, j), scores, -jnp.inf)
            weights = jnp.exp(scores - maximum_n[i][..., None] - log_total_n[i][..., None])
            dweights = _dot("bkmd,bksd->bkms", dout_n[i], v_BKsD)
            dscores = (weights * (dweights - delta_n[i]) * masking.scale).astype(q_BTHD.dtype)
            # dk and dv gather as [D, k]: that orientation of the product is a third faster on a CPU.
            dv = dv + _dot("bkms,bkmd->bkds", weights.astype(dout_n.dtype), dout_n[i])
            dk = dk + _dot("bkms,bkmd->bkds", dscores, q_n[i])
            dq = lax.dynamic_index_in_dim(dq_n, i, keepdims=False) + _dot("bkms,bksd->bkmd", dscores, k_BKsD)
            return lax.dynamic_update_index_in_dim(dq_n, dq, i, axis=0), dk, dv

        zeros = jnp.zeros(jnp.swapaxes(k_BKsD, 2, 3).shape, jnp.float32)
        first, last = blocks.queries_of_key[0][j], blocks.queries_of_key[1][j]
        dq_n, dk, dv = lax.fori_loop(first, last, one_query_block, (dq_n, zeros, zeros))
        return dq_n, tuple(jnp.swapaxes(g, 2, 3).astype(k_BSKD.dtype) for g in (dk, dv))

    dq_n, (dk_n, dv_n) = lax.scan(one_key_block, jnp.zeros(q_n.shape, jnp.float32), jnp.arange(blocks.key_count))
    dq_BTHD = blocks.join_queries(dq_n).reshape(q_BTHD.shape).astype(q_BTHD.dtype)
    return dq_BTHD, blocks.join_keys(dk_n), blocks.join_keys(dv_n), None, None


blockwise_attention.defvjp(_forward, _backward)


@dataclasses.dataclass
class _Blocks:
    """How the sequences are cut, and which pairs of blocks can see each other."""

    masking: Masking
    group: int
    query_length: int
    key_length: int
    query_count: int
    key_count: int
    query_segments: jax.Array  # [n, B, q]
    key_segments: jax.Array  # [n, B, k]
    keys_of_query: tuple[jax.Array, jax.Array] = dataclasses.field(init=False)
    queries_of_key: tuple[jax.Array, jax.Array] = dataclasses.field(init=False)

    @classmethod
    def of(cls, masking, q_BTHD, k_BSKD, query_segments_BT, key_segments_BS) -> _Blocks:
        query_length, key_length = q_BTHD.shape[1], k_BSKD.shape[1]
        query_count, key_count = _ceil_div(query_length, QUERY_BLOCK), _ceil_div(key_length, KEY_BLOCK)
        query_segments = _split(query_segments_BT, query_count)
        key_segments = _split(key_segments_BS, key_count)
        group = q_BTHD.shape[2] // k_BSKD.shape[2]
        return cls(masking, group, query_length, key_length, query_count, key_count, query_segments, key_segments)

    def __post_init__(self):
        visible = self._visible()
        self.keys_of_query = _first_and_last(visible)
        self.queries_of_key = _first_and_last(visible.T)

    @property
    def query_block(self) -> int:
        return self.query_segments.shape[2]

    @property
    def key_block(self) -> int:
        return self.key_segments.shape[2]

    def split_queries(self, x_BTKGD: jax.Array) -> jax.Array:
        """[B, T, K, G, D] to [n, B, K, m, D]."""
        x_nBKGqD = jnp.moveaxis(_split(x_BTKGD, self.query_count), 2, 4)
        return x_nBKGqD.reshape(*x_nBKGqD.shape[:3], -1, x_nBKGqD.shape[5])

    def join_queries(self, x_nBKmD: jax.Array) -> jax.Array:
        """The inverse of `split_queries`."""
        x_nBKGqD = x_nBKmD.reshape(*x_nBKmD.shape[:3], -1, self.query_block, x_nBKmD.shape[4])
        return _join(jnp.moveaxis(x_nBKGqD, 4, 2), self.query_length)

    def split_keys(self, x_BSKD: jax.Array) -> jax.Array:
        """[B, S, K, D] to [n, B, K, k, D]."""
        return jnp.swapaxes(_split(x_BSKD, self.key_count), 2, 3)

    def join_keys(self, x_nBKkD: jax.Array) -> jax.Array:
        """The inverse of `split_keys`."""
        return _join(jnp.swapaxes(x_nBKkD, 2, 3), self.key_length)

    def mask(self, i: jax.Array, j: jax.Array) -> jax.Array:
        """bool [B, 1, m, k]: what the queries of block i see of the keys of block j."""
        query = (i * self.query_block + jnp.arange(self.query_block))[:, None]
        key = (j * self.key_block + jnp.arange(self.key_block))[None, :]
        inside = key < self.key_length
        if self.masking.causal:
            inside = inside & (key <= query + self.masking.query_offset)
        same = self.query_segments[i][:, :, None] == self.key_segments[j][:, None, :]
        return jnp.tile((same & inside[None])[:, None], (1, 1, self.group, 1))

    def _visible(self) -> jax.Array:
        """bool [query_count, key_count]: pairs of blocks that may share a visible pair of tokens.

        Blocks whose ranges of segment ids do not meet cannot; the test is exact for ids in ascending order and errs on
        the side of work otherwise.
        """
        low, high = (f(self.query_segments, axis=2)[:, None] for f in (jnp.min, jnp.max))
        key_low, key_high = (f(self.key_segments, axis=2)[None] for f in (jnp.min, jnp.max))
        visible = jnp.any((low <= key_high) & (key_low <= high), axis=-1)
        if self.masking.causal:
            last_query = (jnp.arange(self.query_count) + 1) * self.query_block - 1 + self.masking.query_offset
            first_key = jnp.arange(self.key_count) * self.key_block
            visible = visible & (first_key[None, :] <= last_query[:, None])
        return visible


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _dot(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


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
