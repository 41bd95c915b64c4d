"""Attention as two calls, for a caller that orders its backward pass itself and lets it take over memory.

Between `forward_half` and `backward_half` the caller has turned out's cotangent into `delta = sum over D of out dout`, and may have
written dout over out.

Shapes: B batch, T tokens, H query heads, K key/value heads, D head_dim.
Source: Dao, FlashAttention-2, arXiv 2307.08691.
"""

from __future__ import annotations

from typing import Any

import jax

from lcjax.errors import InputError
from lcjax.ops.attention.call import AttentionCall
from lcjax.ops.attention.registry import resolve_implementation

IN_HALVES = ("pallas", "xla")


def runs_in_halves(implementation: str) -> bool:
    """Whether an implementation that `lcjax.ops.attention` takes can be called in halves."""
    return resolve_implementation(implementation) in IN_HALVES


def implementation_in_halves(implementation: str) -> str:
    """ "pallas" or "xla", for a name that `lcjax.ops.attention` takes.

    Raises:
      InputError: the implementation hides its backward pass.
    """
    name = resolve_implementation(implementation)
    if name not in IN_HALVES:
        raise InputError(
            f"attention={implementation!r} does not run in tiles; use attention='pallas' or attention='xla'"
        )
    return name


def forward_half(implementation: str, q_BTHD, k_BTKD, v_BTKD, segment_ids_BT) -> tuple[jax.Array, Any]:
    """(out [B, T, H, D], log-sum-exp in the implementation's own form) of causal attention inside segments.

    out may take over q's memory, where q is not used afterwards.
    """
    call = _call(q_BTHD, k_BTKD, v_BTKD, segment_ids_BT)
    if implementation == "pallas":
        from lcjax.pallas.triton.attention import forward_in_place

        return forward_in_place(call.scale, q_BTHD, k_BTKD, v_BTKD, call.mask)
    from lcjax.ops.attention.xla import blockwise_forward

    return blockwise_forward(call.scale, q_BTHD, k_BTKD, v_BTKD, call.mask)


def backward_half(
    implementation: str, q_BTHD, k_BTKD, v_BTKD, segment_ids_BT, lse: Any, dout_BTHD, delta_BHT
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq, dk, dv) in the dtypes of q, k and v; delta is float32. dq may take over q's memory."""
    call = _call(q_BTHD, k_BTKD, v_BTKD, segment_ids_BT)
    if implementation == "pallas":
        from lcjax.pallas.triton.attention import gradients_in_place

        return gradients_in_place(call.scale, q_BTHD, k_BTKD, v_BTKD, call.mask, lse, dout_BTHD, delta_BHT)
    from lcjax.ops.attention.xla import blockwise_gradients

    return blockwise_gradients(call.scale, q_BTHD, k_BTKD, v_BTKD, call.mask, None, lse, dout_BTHD, delta_BHT)


def _call(q_BTHD, k_BTKD, v_BTKD, segment_ids_BT) -> AttentionCall:
    return AttentionCall.checked(
        q_BTHD,
        k_BTKD,
        v_BTKD,
        causal=True,
        window=None,
        query_segments_BT=segment_ids_BT,
        key_segments_BS=segment_ids_BT,
        query_offset=None,
        mask_mod=None,
        score_mod=None,
        soft_cap=None,
        sinks_H=None,
        scale=None,
        return_lse=False,
    )
