"""FlashAttention-3 through the package flash-attn3-jax, where it is installed.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, D head_dim.
Source: Shah et al., FlashAttention-3, arXiv 2407.08608.
"""

from __future__ import annotations

from importlib.util import find_spec

import jax

INSTALLED = find_spec("flash_attn3_jax") is not None


def fa3_attention(
    q_BTHD: jax.Array, k_BSKD: jax.Array, v_BSKD: jax.Array, *, scale: float, window: int | None
) -> tuple[jax.Array, None]:
    """The causal part of `lcjax.ops.attention` that its registry lets through; it has no differentiable log-sum-exp.

    The mask aligns the last query with the last key. Largest safe size: 2^31 - 1 elements an array, beyond which
    nothing is known.
    """
    from flash_attn3_jax import flash_mha  # pyright: ignore[reportMissingImports]

    window_size = (-1 if window is None else window - 1, 0)
    out_BTHD = flash_mha(q_BTHD, k_BSKD, v_BSKD, softmax_scale=scale, is_causal=True, window_size=window_size)
    return out_BTHD, None


def scratch_bytes(heads: int, kv_heads: int, head_dim: int, tokens: int) -> int:
    """What the backward pass allocates by itself, out of XLA's sight, at `tokens` tokens in all.

    float32 sums: dq [H, T, D], where heads share keys dk and dv [K, T, D] too, and two numbers a query.
    Source: `mha_bwd` of FlashAttention-3; on an H100 at 16,384 and 131,072 tokens, docs/performance.md.
    """
    gathered = heads + (2 * kv_heads if heads != kv_heads else 0)
    return 4 * tokens * (gathered * head_dim + 2 * heads)
