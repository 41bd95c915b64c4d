"""The kernels of this package as an implementation of attention."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lcjax.ops.attention.backend import Backend, Gradients, Result
from lcjax.ops.attention.call import AttentionCall
from lcjax.pallas.triton.attention import Options, flash_attention, forward_in_place, gradients_in_place
from lcjax.pallas.triton.block_sizes import LARGEST_HEAD_DIM


def _refusal(call: AttentionCall) -> str | None:
    head_dim, dtype = call.q_BTHD.shape[-1], call.q_BTHD.dtype
    if dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return f"does not support dtype {dtype}; use float32, bfloat16 or float16, or attention='xla'"
    if head_dim > LARGEST_HEAD_DIM:
        return f"does not support head_dim={head_dim}; use at most {LARGEST_HEAD_DIM}, or attention='xla'"
    return None


def _run(call: AttentionCall) -> Result:
    options = Options(call.scale)
    return flash_attention(options, call.q_BTHD, call.k_BSKD, call.v_BSKD, call.sinks_H, call.mask, call.score_mod)


def _forward(call: AttentionCall) -> tuple[jax.Array, Any]:
    return forward_in_place(call.scale, call.q_BTHD, call.k_BSKD, call.v_BSKD, call.mask, call.score_mod)


def _backward(call: AttentionCall, lse: Any, dout_BTHD: jax.Array, delta_BHT: jax.Array) -> Gradients:
    arrays = call.q_BTHD, call.k_BSKD, call.v_BSKD
    return gradients_in_place(call.scale, *arrays, call.mask, call.score_mod, lse, dout_BTHD, delta_BHT)


BACKEND = Backend(
    name="pallas",
    refusal=_refusal,
    run=_run,
    takes_segments=True,
    forward=_forward,
    backward=_backward,
    kernel_pattern="attention_(forward|dq|dkv)",
)
