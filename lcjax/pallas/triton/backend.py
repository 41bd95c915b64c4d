"""The kernels of this package as an implementation of attention."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lcjax.ops.attention.backend import Backend, Gradients, LseForm, Result
from lcjax.ops.attention.call import AttentionCall
from lcjax.pallas.triton.attention import Options, flash_attention, forward_in_place, gradients_in_place
from lcjax.pallas.triton.block_sizes import LARGEST_HEAD_DIM
from lcjax.pallas.triton.scores import LOG2_E


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
    arrays = call.q_BTHD, call.k_BSKD, call.v_BSKD, call.sinks_H
    return forward_in_place(call.scale, *arrays, call.mask, call.score_mod)


def _backward(call: AttentionCall, lse: Any, dout_BTHD: jax.Array, delta_BHT: jax.Array) -> Gradients:
    arrays = call.q_BTHD, call.k_BSKD, call.v_BSKD, call.sinks_H
    return gradients_in_place(call.scale, *arrays, call.mask, call.score_mod, lse, dout_BTHD, delta_BHT)


def _read_lse(call: AttentionCall, lse: Any) -> tuple[jax.Array, jax.Array]:
    """In base 2, as the kernels for float32 store it; for 16 bits they store one number, base e."""
    lse_BHT, total_BHT = lse
    unseen = jnp.isposinf(lse_BHT)
    maximum_BHT = lse_BHT * LOG2_E if total_BHT is None else lse_BHT
    total_BHT = jnp.ones_like(lse_BHT) if total_BHT is None else total_BHT
    return jnp.where(unseen, -jnp.inf, maximum_BHT), jnp.where(unseen, 0.0, total_BHT)


def _write_lse(call: AttentionCall, maximum_BHT: jax.Array, total_BHT: jax.Array) -> Any:
    unseen = total_BHT == 0
    total_BHT = jnp.where(unseen, 1.0, total_BHT)
    if call.q_BTHD.dtype == jnp.float32:
        return jnp.where(unseen, jnp.inf, maximum_BHT), total_BHT
    return jnp.where(unseen, jnp.inf, maximum_BHT / LOG2_E + jnp.log(total_BHT)), None


BACKEND = Backend(
    name="pallas",
    refusal=_refusal,
    run=_run,
    takes_segments=True,
    forward=_forward,
    backward=_backward,
    lse_form=LseForm(_read_lse, _write_lse, jnp.exp2, LOG2_E),
    kernel_pattern="attention_(forward|dq|dkv)",
)
