"""The specification of attention in plain jax.numpy, in the dtype of its inputs.

It needs quadratic memory. Tests run it in float64 and compare every implementation with it.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def attention_mask(
    query_segments_BT: jax.Array, key_segments_BS: jax.Array, *, causal: bool, query_offset: int
) -> jax.Array:
    """bool [B, 1, T, S]: a query sees keys of its own segment; with `causal`, none after itself.

    Query t is at key index `t + query_offset`.
    """
    tokens, keys = query_segments_BT.shape[1], key_segments_BS.shape[1]
    visible = query_segments_BT[:, :, None] == key_segments_BS[:, None, :]
    if causal:
        not_after = jnp.arange(keys)[None, :] <= jnp.arange(tokens)[:, None] + query_offset
        visible = visible & not_after[None]
    return visible[:, None]


def attention(
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    mask_BHTS: jax.Array,
    *,
    scale: float,
    score_mod: Callable[..., jax.Array] | None = None,
    sinks_H: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(`softmax(score_mod(scale * q k^T), where mask) v` [B, T, H, D], the log-sum-exp [B, H, T]).

    The mask's first two axes may be 1. A query that sees neither a key nor a sink gives zero and
    -inf.
    """
    (batch, tokens, heads, _), keys = q_BTHD.shape, k_BSKD.shape[1]
    k_BSHD, v_BSHD = (jnp.repeat(x, heads // k_BSKD.shape[2], axis=2) for x in (k_BSKD, v_BSKD))
    scores = jnp.einsum("bthd,bshd->bhts", q_BTHD, k_BSHD) * scale
    if score_mod is not None:
        b, h, q, k = jnp.ogrid[:batch, :heads, :tokens, :keys]
        scores = score_mod(scores, b, h, q, k)
    scores = jnp.where(mask_BHTS, scores, -jnp.inf)
    if sinks_H is not None:
        sink = jnp.broadcast_to(sinks_H[None, :, None, None], (batch, heads, tokens, 1)).astype(scores.dtype)
        scores = jnp.concatenate([scores, sink], axis=-1)
    maximum = jnp.max(scores, axis=-1, keepdims=True)
    shift = jax.lax.stop_gradient(jnp.where(maximum == -jnp.inf, 0, maximum))
    weights = jnp.exp(scores - shift)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    seen = total > 0
    safe = jnp.where(seen, total, 1)
    lse = jnp.where(seen, shift + jnp.log(safe), -jnp.inf)[..., 0]
    return jnp.einsum("bhts,bshd->bthd", weights[..., :keys] / safe, v_BSHD), lse
