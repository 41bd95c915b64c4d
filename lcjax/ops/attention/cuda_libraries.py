"""What none of the attention libraries written in CUDA supports."""

from __future__ import annotations

import jax.numpy as jnp

from lcjax.ops.attention.call import AttentionCall

INSTEAD = "attention='pallas' or attention='xla'"
"""The implementations that compute what the libraries do not support."""


def library_refusal(call: AttentionCall, *, largest_head_dim: int) -> str | None:
    """Why neither library supports a call; None if both may support it."""
    batch, tokens, heads, head_dim = call.q_BTHD.shape
    if call.extras:
        return f"does not support {', '.join(call.extras)}; use {INSTEAD}"
    if call.q_BTHD.dtype not in (jnp.bfloat16, jnp.float16):
        return f"does not support dtype {call.q_BTHD.dtype}; use bfloat16 or float16, or {INSTEAD}"
    if head_dim % 8 or head_dim > largest_head_dim:
        return f"does not support head_dim={head_dim}; use a multiple of 8 up to {largest_head_dim}, or {INSTEAD}"
    if max(call.q_BTHD.size, call.k_BSKD.size) >= 2**31:
        return f"is not known to be safe at {batch * tokens:,} tokens x {heads} heads x {head_dim}; use {INSTEAD}"
    return None
