"""Flash attention from the three kernels, with its derivative rule.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.ops.attention.masks import Blocks, Mask
from lcjax.ops.residuals import ATTENTION_LSE, ATTENTION_OUTPUT, name_residual
from lcjax.pallas.schedule import Schedule, schedule
from lcjax.pallas.triton import scores
from lcjax.pallas.triton.attention_dkv import attention_dkv
from lcjax.pallas.triton.attention_dq import attention_dq
from lcjax.pallas.triton.attention_forward import attention_forward
from lcjax.pallas.triton.block_sizes import BlockSizes, block_sizes_for
from lcjax.pallas.triton.scores import LOG2_E, KernelSpec


@dataclasses.dataclass(frozen=True)
class Options:
    """The static part of a call.

    It has the scale of the scores, and block sizes by kernel, which override those of the table.
    """

    scale: float
    block_sizes: tuple[tuple[str, BlockSizes], ...] = ()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def flash_attention(
    options: Options,
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    sinks_H: jax.Array | None,
    mask: Mask,
    score_mod: Any,
) -> tuple[jax.Array, jax.Array]:
    """The operation of `lcjax.ops.attention`: (out, lse float32 [B, H, T] in base e).

    Largest safe size: 2^31 - 1 tokens per sequence, and arrays of any number of elements (the
    compiler uses 64-bit offsets if an array exceeds 4 GiB). The result is differentiable in q, k, v
    and sinks; the arrays of mask and score_mod are constants.
    """
    return _forward(options, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod)[0]


def _forward(options, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod):
    spec = kernel_spec("attention_forward", options, q_BTHD, k_BSKD)
    visits = schedule_of(spec, mask, rows="queries")
    out_BTHD, lse_BHT, total_BHT = attention_forward(spec, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod, visits)
    # Every residual needs a name. An unnamed one would force a recomputed forward pass to run the
    # kernel again.
    out_BTHD, lse_BHT = name_residual(out_BTHD, ATTENTION_OUTPUT), name_residual(lse_BHT, ATTENTION_LSE)
    if total_BHT is not None:
        total_BHT = name_residual(total_BHT, ATTENTION_LSE)
    residuals = q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod, out_BTHD, lse_BHT, total_BHT
    slope = scores.slope(spec, score_mod)
    whole_BHT = lse_BHT if total_BHT is None else scores.in_base_e(lse_BHT, total_BHT, slope)
    return (out_BTHD, jnp.where(jnp.isposinf(lse_BHT), -jnp.inf, whole_BHT)), residuals


def _backward(options, residuals, cotangents):
    q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod, out_BTHD, lse_BHT, total_BHT = residuals
    dout_BTHD, dlse_BHT = cotangents
    spec = kernel_spec("attention_dq", options, q_BTHD, k_BSKD)
    visits = schedule_of(spec, mask, rows="queries")
    dq_BTHD, delta_BHT = attention_dq(
        spec, q_BTHD, k_BSKD, v_BSKD, out_BTHD, dout_BTHD, lse_BHT, total_BHT, dlse_BHT, mask, score_mod, visits
    )
    spec = kernel_spec("attention_dkv", options, q_BTHD, k_BSKD)
    visits = schedule_of(spec, mask, rows="keys")
    dk_BSKD, dv_BSKD = attention_dkv(
        spec, q_BTHD, k_BSKD, v_BSKD, dout_BTHD, lse_BHT, total_BHT, delta_BHT, mask, score_mod, visits
    )
    dsinks_H = _sinks_gradient(sinks_H, lse_BHT, total_BHT, delta_BHT)
    return dq_BTHD, dk_BSKD, dv_BSKD, dsinks_H, None, None


flash_attention.defvjp(_forward, _backward)


def forward_in_place(
    scale: float, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask: Mask, score_mod: Any
) -> tuple[jax.Array, Any]:
    """(out in q's memory, the log-sum-exp for `gradients_in_place`); not differentiable."""
    spec = kernel_spec("attention_forward", Options(scale), q_BTHD, k_BSKD)
    visits = schedule_of(spec, mask, rows="queries")
    out_BTHD, lse_BHT, total_BHT = attention_forward(
        spec, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod, visits, in_place=True
    )
    return out_BTHD, (lse_BHT, total_BHT)


def gradients_in_place(
    scale: float, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask: Mask, score_mod: Any, lse: Any, dout_BTHD, delta_BHT
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """(dq in q's memory, dk, dv, dsinks), from `delta = sum over D of out dout`, float32."""
    lse_BHT, total_BHT = lse
    spec = kernel_spec("attention_dkv", Options(scale), q_BTHD, k_BSKD)
    visits = schedule_of(spec, mask, rows="keys")
    dk_BSKD, dv_BSKD = attention_dkv(
        spec, q_BTHD, k_BSKD, v_BSKD, dout_BTHD, lse_BHT, total_BHT, delta_BHT, mask, score_mod, visits
    )
    # dq overwrites q, so it must wait until dk has been computed from q.
    q_BTHD, dk_BSKD, dv_BSKD = lax.optimization_barrier((q_BTHD, dk_BSKD, dv_BSKD))
    spec = kernel_spec("attention_dq", Options(scale), q_BTHD, k_BSKD)
    visits = schedule_of(spec, mask, rows="queries")
    dq_BTHD, _ = attention_dq(
        spec, q_BTHD, k_BSKD, v_BSKD, None, dout_BTHD, lse_BHT, total_BHT, None, mask, score_mod, visits,
        delta_BHT=delta_BHT, in_place=True,
    )  # fmt: skip
    return dq_BTHD, dk_BSKD, dv_BSKD, _sinks_gradient(sinks_H, lse_BHT, total_BHT, delta_BHT)


def _sinks_gradient(sinks_H, lse_BHT, total_BHT, delta_BHT):
    """A sink is a key with the value 0, so the gradient of its score is `p (0 - delta)`."""
    if sinks_H is None:
        return None
    sinks_BHT = sinks_H[None, :, None]
    if total_BHT is None:
        weights_BHT = jnp.exp(sinks_BHT - lse_BHT)
    else:
        # Use the logarithm: on a CPU the quotient of the exponential and the total is less accurate
        # by half.
        weights_BHT = jnp.exp2(sinks_BHT * LOG2_E - lse_BHT - jnp.log2(total_BHT))
    return -jnp.sum(weights_BHT * delta_BHT, axis=(0, 2))


def kernel_spec(kernel: str, options: Options, q_BTHD, k_BSKD) -> KernelSpec:
    """The static properties of a call for one of the kernels, with that kernel's block sizes."""
    batch, tokens, heads, head_dim = q_BTHD.shape
    sizes = dict(options.block_sizes).get(kernel) or block_sizes_for(kernel, head_dim, q_BTHD.dtype.itemsize)
    is_float32 = q_BTHD.dtype == jnp.float32
    return KernelSpec(
        batch, tokens, k_BSKD.shape[1], heads, k_BSKD.shape[2], head_dim, options.scale, sizes, is_float32
    )


def schedule_of(spec: KernelSpec, mask: Mask, *, rows: str) -> Schedule:
    """Which blocks the kernel visits; `rows` is "queries" or, for dk/dv, "keys"."""
    lengths = spec.batch, spec.heads, spec.tokens, spec.keys
    return schedule(mask, Blocks(*lengths, spec.blocks.query_block, spec.blocks.key_block), rows=rows)
