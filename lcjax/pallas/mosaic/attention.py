"""Flash attention from the two kernels, with its derivative rule.

The kernels know no sinks. With the log-sum-exp of the keys, the one that includes a sink is
`log(exp(lse) + exp(sink))`. The output is scaled by the ratio of the two denominators. The backward
kernel computes the probabilities from the log-sum-exp that it is given, so it needs no change.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, D head_dim, P query
tokens padded to whole tiles.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lcjax.ops.attention.masks import Mask
from lcjax.ops.residuals import ATTENTION_LSE, ATTENTION_OUTPUT, name_residual
from lcjax.pallas.mosaic import attention_backward, attention_forward, ranges
from lcjax.pallas.mosaic.attention_forward import LOG2_E


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def flash_attention(
    scale: float,
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    sinks_H: jax.Array | None,
    mask: Mask,
) -> tuple[jax.Array, jax.Array]:
    """The operation of `lcjax.ops.attention`: (out, lse float32 [B, H, T] in base e).

    bfloat16 or float16, a head_dim of 64 or 128, and a mask of which `ranges.parts_of` is not None.
    Largest safe size: 2^31 - 1 tokens per sequence, and arrays of any number of elements. The
    result is differentiable in q, k, v and sinks; the arrays of the mask are constants. Gradients
    have the same bits every time. While the backward pass runs there is an array for dq in float32.
    """
    return _forward(scale, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask)[0]


def _forward(scale, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask):
    out_BTHD, lse_BHP = forward(scale, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask)
    # Every residual needs a name. An unnamed one would force a recomputed forward pass to run the
    # kernel again.
    out_BTHD, lse_BHP = name_residual(out_BTHD, ATTENTION_OUTPUT), name_residual(lse_BHP, ATTENTION_LSE)
    lse_BHT = lse_BHP[..., : q_BTHD.shape[1]]
    without_keys = -jnp.inf if sinks_H is None else sinks_H[None, :, None]
    in_base_e_BHT = jnp.where(jnp.isposinf(lse_BHT), without_keys, lse_BHT / LOG2_E)
    return (out_BTHD, in_base_e_BHT), (q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, out_BTHD, lse_BHP)


def _backward(scale, residuals, cotangents):
    q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, out_BTHD, lse_BHP = residuals
    dout_BTHD, dlse_BHT = cotangents
    products_BTHD = out_BTHD.astype(jnp.float32) * dout_BTHD.astype(jnp.float32)
    delta_BHT = jnp.swapaxes(products_BTHD.sum(axis=-1), 1, 2) - dlse_BHT
    return *gradients(scale, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, lse_BHP, dout_BTHD, delta_BHT), None


flash_attention.defvjp(_forward, _backward)


def forward(
    scale: float, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask: Mask, *, in_place: bool = False
) -> tuple[jax.Array, jax.Array]:
    """(out, in q's memory if `in_place`; the log-sum-exp for `gradients`); not differentiable."""
    tokens, keys = q_BTHD.shape[1], k_BSKD.shape[1]
    query_block, key_block = attention_forward.query_block_for(q_BTHD.shape[3]), attention_forward.KEY_BLOCK
    view = ranges.view_of(mask, tokens, keys, query_block, key_block)
    operands = ranges.operands(view, mask, q_BTHD.shape[0], rows="queries")
    out_BTHD, lse_BHP = attention_forward.attention_forward(
        view, scale, _padded(q_BTHD), _padded(k_BSKD), _padded(v_BSKD), operands, in_place=in_place
    )
    out_BTHD = out_BTHD[:, :tokens]
    return (out_BTHD, lse_BHP) if sinks_H is None else with_sinks(out_BTHD, lse_BHP, sinks_H)


def gradients(
    scale: float, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask: Mask, lse_BHP, dout_BTHD, delta_BHT
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """(dq, dk, dv) in the dtypes of q, k and v, and dsinks, from `delta = sum over D of out dout`.

    delta and dsinks are float32.
    """
    dsinks_H = None if sinks_H is None else _gradient_of_sinks(sinks_H, lse_BHP[..., : q_BTHD.shape[1]], delta_BHT)
    (batch, tokens, _, head_dim), keys = q_BTHD.shape, k_BSKD.shape[1]
    query_block, key_block = attention_backward.query_block_for(head_dim), attention_backward.KEY_BLOCK
    view = ranges.view_of(mask, tokens, keys, query_block, key_block)
    operands = ranges.operands(view, mask, batch, rows="keys")
    # The two kernels pad to whole blocks of their own.
    missing = max(0, view.query_blocks * query_block - lse_BHP.shape[2])
    lse_BHP = jnp.pad(lse_BHP, ((0, 0), (0, 0), (0, missing)), constant_values=jnp.inf)
    delta_BHP = jnp.pad(delta_BHT, ((0, 0), (0, 0), (0, lse_BHP.shape[2] - tokens)))
    q_BTHD, k_BSKD, v_BSKD, dout_BTHD = (_padded(x) for x in (q_BTHD, k_BSKD, v_BSKD, dout_BTHD))
    dq_BPHD, dk_BSKD, dv_BSKD = attention_backward.attention_backward(
        view, scale, q_BTHD, k_BSKD, v_BSKD, dout_BTHD, lse_BHP, delta_BHP, operands
    )
    dq_BTHD = dq_BPHD[:, :tokens] * scale
    if not ranges.every_query_sees_a_key(view):
        # The kernel leaves out blocks of queries without a key.
        sees_BTH = jnp.swapaxes(jnp.isfinite(lse_BHP[..., :tokens]), 1, 2)
        dq_BTHD = jnp.where(sees_BTH[..., None], dq_BTHD, 0)
    return dq_BTHD.astype(q_BTHD.dtype), dk_BSKD[:, :keys], dv_BSKD[:, :keys], dsinks_H


def with_sinks(out_BTHD: jax.Array, lse_BHP: jax.Array, sinks_H: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(out, lse) with one more term of the denominator.

    For a query without a key, out is still zero. lse is still infinite, which is what the backward
    kernel expects of such a query.
    """
    whole_BHP = jnp.logaddexp2(lse_BHP, (sinks_H * LOG2_E)[None, :, None])
    ratios_BTH = jnp.swapaxes(jnp.exp2(lse_BHP - whole_BHP)[..., : out_BTHD.shape[1]], 1, 2)
    scaled_BTHD = (out_BTHD.astype(jnp.float32) * ratios_BTH[..., None]).astype(out_BTHD.dtype)
    seen_BTH = jnp.isfinite(jnp.swapaxes(lse_BHP[..., : out_BTHD.shape[1]], 1, 2))
    return jnp.where(seen_BTH[..., None], scaled_BTHD, 0), jnp.where(jnp.isfinite(lse_BHP), whole_BHP, jnp.inf)


def _gradient_of_sinks(sinks_H: jax.Array, lse_BHT: jax.Array, delta_BHT: jax.Array) -> jax.Array:
    """A sink is a key with the value 0, so the gradient of its score is `p (0 - delta)`.

    p is 1 for a query without a key.
    """
    seen_BHT = jnp.isfinite(lse_BHT)
    weights_BHT = jnp.exp2((sinks_H * LOG2_E)[None, :, None] - jnp.where(seen_BHT, lse_BHT, 0))
    return -jnp.sum(jnp.where(seen_BHT, weights_BHT, 1) * delta_BHT, axis=(0, 2))


def _padded(x_BTHD: jax.Array) -> jax.Array:
    """With zeros up to a multiple of 8 tokens, which the copy engine asks for."""
    return jnp.pad(x_BTHD, ((0, 0), (0, -x_BTHD.shape[1] % 8), (0, 0), (0, 0)))
