"""FlashAttention-3 through the package flash-attn3-jax, if it is installed.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, D head_dim.
Source: Shah et al., FlashAttention-3, arXiv 2407.08608.
"""

from __future__ import annotations

from importlib.util import find_spec

import jax

from lcjax.ops.attention.backend import Backend, Result
from lcjax.ops.attention.call import AttentionCall
from lcjax.ops.attention.cuda_libraries import INSTEAD, library_refusal

INSTALLED = find_spec("flash_attn3_jax") is not None


def fa3_attention(
    q_BTHD: jax.Array, k_BSKD: jax.Array, v_BSKD: jax.Array, *, scale: float, window: int | None
) -> tuple[jax.Array, None]:
    """The causal calls of `lcjax.ops.attention` that `_refusal` accepts.

    There is no differentiable log-sum-exp. The mask aligns the last query with the last key.
    Largest safe size: 2^31 - 1 elements per array. Larger sizes are untested.
    """
    from flash_attn3_jax import flash_mha  # pyright: ignore[reportMissingImports]

    window_size = (-1 if window is None else window - 1, 0)
    out_BTHD = flash_mha(q_BTHD, k_BSKD, v_BSKD, softmax_scale=scale, is_causal=True, window_size=window_size)
    return out_BTHD, None


def scratch_bytes(heads: int, kv_heads: int, head_dim: int, tokens: int) -> int:
    """Bytes that the backward pass allocates without XLA's knowledge, for `tokens` total tokens.

    These are float32 sums: dq [H, T, D], with grouped heads also dk and dv [K, T, D], and two
    numbers per query. Source: `mha_bwd` of FlashAttention-3; measured on an H100 at 16,384 and
    131,072 tokens, docs/performance.md.
    """
    gathered = heads + (2 * kv_heads if heads != kv_heads else 0)
    return 4 * tokens * (gathered * head_dim + 2 * heads)


def _refusal(call: AttentionCall) -> str | None:
    if not INSTALLED:
        return f"is not installed; pip install flash-attn3-jax, or use {INSTEAD}"
    if not call.causal:
        # Version 0.2.3 on an H200, 1,024 tokens without a mask: the output is correct, but the
        # gradients are wrong by a factor of 70.
        return f"has wrong gradients without causal; use {INSTEAD}"
    given, last = call.query_offset, call.k_BSKD.shape[1] - call.q_BTHD.shape[1]
    if not (isinstance(given, int) and given == last):
        return (
            f"does not support query_offset={given}, only that of the last query at the last key, {last}; use {INSTEAD}"
        )
    return library_refusal(call, largest_head_dim=128)


def _run(call: AttentionCall) -> Result:
    return fa3_attention(call.q_BTHD, call.k_BSKD, call.v_BSKD, scale=call.scale, window=call.window)


BACKEND = Backend(
    name="fa3", refusal=_refusal, run=_run, needs_gpu=True, order_of_sums="any", scratch_bytes=scratch_bytes
)
