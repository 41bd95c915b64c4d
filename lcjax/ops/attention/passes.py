"""Attention as two calls, for a caller that orders its backward pass itself and lets it take over memory.

Between `attention_fwd` and `attention_bwd` the caller has computed `delta = sum over D of out dout`, and may have written dout
over out.

Shapes: B batch, T tokens, H query heads, K key/value heads, D head_dim.
Source: Dao, FlashAttention-2, arXiv 2307.08691.
"""

from __future__ import annotations

from typing import Any

import jax

from lcjax.config.families import AttentionView
from lcjax.errors import InputError
from lcjax.ops.attention.backend import Backend, Gradients
from lcjax.ops.attention.call import AttentionCall
from lcjax.ops.attention.registry import backend_of


def has_passes(implementation: str) -> bool:
    """Whether an implementation that `lcjax.ops.attention` takes can be called pass by pass."""
    return backend_of(implementation).has_passes


def backend_with_passes(implementation: str) -> Backend:
    """The backend of a name that `lcjax.ops.attention` takes.

    Raises:
      InputError: the implementation hides its backward pass.
    """
    backend = backend_of(implementation)
    if not backend.has_passes:
        raise InputError(
            f"attention={implementation!r} does not run in tiles; use attention='pallas' or attention='xla'"
        )
    return backend


def attention_fwd(
    backend: Backend, q_BTHD, k_BTKD, v_BTKD, segment_ids_BT, sees: AttentionView
) -> tuple[jax.Array, Any]:
    """(out [B, T, H, D], log-sum-exp in the backend's own form) of a layer's attention; see `layer_call`.

    out may take over q's memory, where q is not used afterwards.
    """
    assert backend.forward is not None
    return backend.forward(layer_call(q_BTHD, k_BTKD, v_BTKD, segment_ids_BT, sees))


def attention_bwd(
    backend: Backend, q_BTHD, k_BTKD, v_BTKD, segment_ids_BT, sees: AttentionView, lse: Any, dout_BTHD, delta_BHT
) -> Gradients:
    """(dq, dk, dv) in the dtypes of q, k and v; delta is float32. dq may take over q's memory."""
    assert backend.backward is not None
    return backend.backward(layer_call(q_BTHD, k_BTKD, v_BTKD, segment_ids_BT, sees), lse, dout_BTHD, delta_BHT)


def layer_call(q_BTHD, k_BTKD, v_BTKD, segment_ids_BT, sees: AttentionView) -> AttentionCall:
    """A layer's attention over whole sequences: causal, inside segments, and as far as the family's attention sees."""
    return AttentionCall.checked(
        q_BTHD,
        k_BTKD,
        v_BTKD,
        causal=True,
        window=sees.window,
        query_segments_BT=segment_ids_BT,
        key_segments_BS=segment_ids_BT,
        query_offset=None,
        mask_mod=None,
        score_mod=None,
        soft_cap=sees.soft_cap,
        sinks_H=None,
        scale=sees.scale,
        return_lse=False,
    )
