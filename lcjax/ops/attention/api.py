"""Attention, computed by an implementation that the caller selects by name.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads (H a multiple of K),
D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from lcjax.ops.attention.call import AttentionCall
from lcjax.ops.attention.masks import Mask
from lcjax.ops.attention.registry import choose_backend


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
    """`softmax(scale * q k^T + mask) v` with grouped query heads.

    With sinks, head h has the weights `p_j = exp(s_j) / (exp(sink_h) + sum over i of exp(s_i))` for
    its scores s. They sum to less than 1.

    The result is differentiable in q, k, v and sinks. Memory is O(T + S) in the forward and in the
    backward pass: no [T, S] array exists. A `mask_mod` adds lists of blocks with (T S) / 2^14
    numbers. Scores, softmax and sums are float32, including the sums over a group of query heads.
    The output of a query that sees no key is zero.

    Args:
      q_BTHD, k_BSKD, v_BSKD: float32, bfloat16 or float16; all three have the same dtype.
      causal: query t sees keys up to its own key index `t + query_offset`.
      window: a query sees only the nearest `window` tokens up to and including itself; without
        `causal` it also sees the `window - 1` tokens after itself.
      query_segments_BT, key_segments_BS: int32 document ids; a query sees only keys with its own
        id. Give both or neither. Blocks without a common id cost nothing if the ids are in
        ascending order.
      query_offset: the key index of query 0, an int or a traced int32 scalar. None means `S - T`,
        which aligns the last query with the last key.
      mask_mod: a traceable `mask_mod(b, h, q_idx, kv_idx) -> bool`, or a mask from
        `lcjax.ops.attention.masks`. A query sees a key where this mask and all the arguments above
        allow it; give `causal=False` to use this mask alone. Indices are int32 arrays that
        broadcast. Blocks in which nothing is visible cost nothing.
      score_mod: a traceable `score_mod(score, b, h, q_idx, kv_idx) -> score`, elementwise, applied
        after scaling and capping and before masking. A mod that reads arrays must bind them first
        with `jax.tree_util.Partial(mod, *arrays)`, and may only index them. Differentiation treats
        these arrays as constants.
      soft_cap: scores become `soft_cap * tanh(score / soft_cap)`.
      sinks_H: floating point, one learned logit per head that joins the softmax without a value.
        It is neither scaled nor capped, and is used in float32.
      scale: `1 / sqrt(D)` when None.
      return_lse: also return the log-sum-exp of the scores, which combines results over parts of
        the keys. It is differentiable.
      implementation: "auto" or a name in `lcjax.ops.attention.registry.BACKENDS`. A named
        implementation raises an error for a call that it does not support.

    Returns:
      [B, T, H, D] in q's dtype; with `return_lse` also float32 [B, H, T], which includes the sink.
      It is -inf for a query that sees neither a key nor a sink.

    Raises:
      InputError: the implementation is unknown or does not support the call; the message has the
        reason.
      ValueError: shapes, dtypes or numbers do not fit together.

    Source: Vaswani et al., arXiv 1706.03762; grouped queries: Ainslie et al., arXiv 2305.13245;
    sinks: OpenAI, gpt-oss model card, arXiv 2508.10925.
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
    out_BTHD, lse_BHT = choose_backend(implementation, call).run(call)
    return (out_BTHD, lse_BHT) if return_lse else out_BTHD
