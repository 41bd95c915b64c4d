"""The public operations, each with the implementation chosen by name.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads (H a multiple of K), D head_dim, F rotated pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lcjax import reference
from lcjax.attention_call import AttentionCall
from lcjax.dispatch import (
    IMPLEMENTATIONS,
    choose_attention,
    choose_rope,
    resolve_implementation,
    rope_beside,
    takes_segments,
)
from lcjax.masks import Mask
from lcjax.rope import LONGEST, rope_tables

__all__ = ["IMPLEMENTATIONS", "attention", "resolve_implementation", "rope", "rope_beside", "takes_segments"]


def rope(
    q_BTHD: jax.Array,
    k_BTKD: jax.Array,
    positions_BT: jax.Array,
    inverse_frequencies_F: jax.Array,
    *,
    attention_factor: float = 1.0,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Rotates queries and keys by their positions: the pair (x[i], x[i + F]) by `position * inverse_frequencies[i]`.

    Angles, cosines, sines and the rotation are float32; the results have the dtypes of q and k. Dimensions beyond 2 F stay as they
    are (partial rotary). Differentiable in q and k.

    Args:
      q_BTHD, k_BTKD: float32, bfloat16 or float16.
      positions_BT: integer positions in tokens, one a token, so that packed documents can restart at 0; exact up to 2^24.
      inverse_frequencies_F: float32, radians a token (see `lcjax.rope.inverse_frequencies`); 2 F <= D.
      attention_factor: what rotated pairs are multiplied by (see `lcjax.rope.attention_factor`), a constant.
      implementation: "xla", "pallas" (one launch, in place) or "auto".

    Raises:
      InputError: an unknown implementation.
      ValueError: shapes that do not fit together, or more than 2^24 tokens.

    Source: Su et al., RoFormer, arXiv 2104.09864, with the halves paired as in Hugging Face's Llama.
    """
    rotated = 2 * inverse_frequencies_F.shape[0]
    fit = q_BTHD.shape[:2] == k_BTKD.shape[:2] == positions_BT.shape and q_BTHD.shape[-1] == k_BTKD.shape[-1] >= rotated
    if not fit:
        raise ValueError(
            f"rope: q {q_BTHD.shape} and k {k_BTKD.shape} do not fit positions {positions_BT.shape} and {rotated // 2} "
            "frequencies; expected [B, T, H, D], [B, T, K, D], [B, T] and at most D / 2"
        )
    if positions_BT.shape[1] > LONGEST:
        raise ValueError(
            f"rope: {positions_BT.shape[1]:,} tokens are more than {LONGEST:,}, beyond which float32 does not hold every position; "
            "use shorter sequences"
        )
    if choose_rope(implementation) == "pallas":
        from lcjax.pallas.rope import rotate  # Pallas' Triton backend is imported where it runs

        return rotate(q_BTHD, k_BTKD, positions_BT.astype(jnp.int32), inverse_frequencies_F, float(attention_factor))
    cos, sin = rope_tables(positions_BT, inverse_frequencies_F, attention_factor)
    return _rotated(q_BTHD, cos, sin), _rotated(k_BTKD, cos, sin)


def _rotated(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    pairs = 2 * cos.shape[-1]
    rotated = reference.rope(x[..., :pairs].astype(jnp.float32), cos, sin).astype(x.dtype)
    return rotated if pairs == x.shape[-1] else jnp.concatenate([rotated, x[..., pairs:]], axis=-1)


def attention(
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    *,
    causal: bool = True,
    window: int | None = None,
    query_segments_BT: jax.Array | None = None,
    key_segments_BS: jax.Array | None = None,
    query_offset: int | jax.Array | None = None,
    mask_mod: Mask | Callable[..., Any] | None = None,
    score_mod: Callable[..., Any] | None = None,
    soft_cap: float | None = None,
    sinks_H: jax.Array | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    implementation: str = "auto",
) -> Any:
    """`softmax(scale * q k^T + mask) v` with grouped query heads, differentiable in q, k, v and sinks.

    Memory is O(T + S) forward and backward: no [T, S] array exists (a `mask_mod` adds lists of blocks, (T S) / 2^14 numbers).
    Scores, softmax and sums are float32, those over a group of query heads too. A query that sees no key gives zero.

    Args:
      q_BTHD, k_BSKD, v_BSKD: float32, bfloat16 or float16, one dtype.
      causal: query t sees keys up to its own key index `t + query_offset`.
      window: and only the nearest `window` tokens before it, itself included; after it too where not causal.
      query_segments_BT, key_segments_BS: int32 document ids; a query sees keys of its own id only. Both or neither; blocks
        without a common id cost nothing when ids ascend.
      query_offset: the key index of query 0, an int or a traced int32 scalar; `S - T` when None, which aligns the last query with
        the last key.
      mask_mod: a traceable `mask_mod(b, h, q_idx, kv_idx) -> bool` or a mask of `lcjax.masks`; a query sees a key where it and
        all of the above say so (give `causal=False` where it is to decide alone). Indices are int32 arrays that broadcast.
        Blocks in which nothing is visible cost nothing.
      score_mod: a traceable `score_mod(score, b, h, q_idx, kv_idx) -> score`, elementwise, after scaling and capping, before
        masking. Mods that read arrays bind them first, `jax.tree_util.Partial(mod, *arrays)`, and only index them; these are
        constants to differentiation.
      soft_cap: scores become `soft_cap * tanh(score / soft_cap)`.
      sinks_H: float32, a learned logit a head that joins the softmax without a value; neither scaled nor capped.
      scale: `1 / sqrt(D)` when None.
      return_lse: also return the log-sum-exp of the scores, by which results over parts of the keys combine; differentiable.
      implementation: one of IMPLEMENTATIONS; a named one refuses what it cannot do.

    Returns:
      [B, T, H, D] in q's dtype; with `return_lse` also float32 [B, H, T], -inf for a query that sees no key.

    Raises:
      InputError: an implementation that is unknown or does not support the call, with the reason.
      ValueError: shapes, dtypes or numbers that do not fit together.

    Source: Vaswani et al., arXiv 1706.03762; grouped queries: Ainslie et al., arXiv 2305.13245; sinks: OpenAI, gpt-oss model card.
    """
    call = AttentionCall.checked(
        q_BTHD,
        k_BSKD,
        v_BSKD,
        causal=causal,
        window=window,
        query_segments_BT=query_segments_BT,
        key_segments_BS=key_segments_BS,
        query_offset=query_offset,
        mask_mod=mask_mod,
        score_mod=score_mod,
        soft_cap=soft_cap,
        sinks_H=sinks_H,
        scale=scale,
        return_lse=return_lse,
    )
    out_BTHD, lse_BHT = choose_attention(implementation, call)(call)
    return (out_BTHD, lse_BHT) if return_lse else out_BTHD
