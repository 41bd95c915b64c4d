"""The specification of the operations in plain jax.numpy: obvious, quadratic, in the dtype of its inputs.

Tests run it in float64 and hold every implementation against it. Shapes: B batch, T query tokens, S key tokens, H query
heads, K key/value heads, G = H / K, D head_dim, F = D / 2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rope(x_BTHD: jax.Array, cos_BTF: jax.Array, sin_BTF: jax.Array) -> jax.Array:
    """Rotates the pairs (x[i], x[i + F]) of every head by the tables' angles (see `lcjax.rope.rope_tables`)."""
    first, second = jnp.split(x_BTHD, 2, axis=-1)
    cos, sin = cos_BTF[:, :, None, :], sin_BTF[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention_mask(
    query_segments_BT: jax.Array, key_segments_BS: jax.Array, *, causal: bool, query_offset: int
) -> jax.Array:
    """bool [B, T, S]: a query sees the keys of its own segment, and under `causal` none after itself.

    Query t stands at key index `t + query_offset`.
    """
    tokens, keys = query_segments_BT.shape[1], key_segments_BS.shape[1]
    visible = query_segments_BT[:, :, None] == key_segments_BS[:, None, :]
    if causal:
        not_after = jnp.arange(keys)[None, :] <= jnp.arange(tokens)[:, None] + query_offset
        visible = visible & not_after[None]
    return visible


def attention(
    q_BTHD: jax.Array, k_BSKD: jax.Array, v_BSKD: jax.Array, mask_BTS: jax.Array, *, scale: float
) -> jax.Array:
    """`softmax(scale * q k^T, where mask) v`, [B, T, H, D]; a query that sees no key gives zero."""
    batch, tokens, heads, head_dim = q_BTHD.shape
    kv_heads = k_BSKD.shape[2]
    q_BTKGD = q_BTHD.reshape(batch, tokens, kv_heads, heads // kv_heads, head_dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", q_BTKGD, k_BSKD) * scale
    mask = mask_BTS[:, None, None]
    scores = jnp.where(mask, scores, -jnp.inf)
    weights = jnp.where(mask, jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True)), 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1, total)
    return jnp.einsum("bkgts,bskd->btkgd", weights, v_BSKD).reshape(q_BTHD.shape)
