"""Attention in plain XLA, block by block: O(T) memory forward and backward on any device.

Two nested loops over blocks of queries and blocks of keys compute a running softmax. The loops skip
blocks that the mask hides completely. The backward pass recomputes the probabilities from the
log-sum-exp, in one sweep for dq, dk and dv.

Source: Dao, FlashAttention-2, arXiv 2307.08691; Rabe & Staats, arXiv 2112.05682.
Shapes: B batch, T query tokens, S key tokens, K key/value heads, G query heads per key/value head,
D head_dim. q and k are the lengths of a block of queries and of keys. m = G q is the number of rows
of one block of queries for one key/value head. n counts blocks.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.ops.attention.backend import Backend, Gradients, LseForm, Result
from lcjax.ops.attention.block_pairs import BlockPairs
from lcjax.ops.attention.call import AttentionCall
from lcjax.ops.attention.masks import Mask
from lcjax.ops.residuals import ATTENTION_LSE, ATTENTION_OUTPUT, name_residual

# XLA's matrix products on a CPU add one term after another, and the rounding error of such a chain
# grows with its length. The plain implementation, which the tolerance rule compares with, has short
# chains. On a CPU, parts of 32 cost 5% more of attention's time than parts of 64, but with 64 a
# gradient of sinks was above the tolerance.
LONGEST_SUM = 32
# For dout v and for delta. For a query that sees few keys their difference is small, so in float32
# it shows the rounding errors of both.
LONGEST_SUM_OF_A_DIFFERENCE = 16
# For the sum over a block's queries in dk. All of them see the early keys, and the error of one
# chain over all heads of a group was above the tolerance.
LONGEST_SUM_OF_QUERIES = 64
# XLA on a CPU uses a different algorithm for products of fewer rows.
ROWS_OF_A_PRODUCT = 64


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def blockwise_attention(
    scale: float,
    q_BTHD: jax.Array,
    k_BSKD: jax.Array,
    v_BSKD: jax.Array,
    sinks_H: jax.Array | None,
    mask: Mask,
    score_mod: Any,
) -> tuple[jax.Array, jax.Array]:
    """The operation of `lcjax.ops.attention`: (out, lse float32 [B, H, T]).

    Scores and sums are float32. Largest safe size: 2^31 - 1 tokens per sequence. The result is
    differentiable in q, k, v and sinks; the arrays of mask and score_mod are constants.
    """
    return _forward(scale, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod)[0]


def _forward(scale, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod):
    blocks = BlockPairs.of(mask, q_BTHD, k_BSKD)
    q_n = blocks.split_queries(_group_heads(q_BTHD, blocks.kv_heads))
    k_n, v_n = blocks.split_keys(k_BSKD), blocks.split_keys(v_BSKD)

    def one_query_block(_, i):
        q_BKmD = q_n[i]

        def one_key_block(j, carry):
            accumulated, maximum, total = carry
            scores = blocks.modified(score_mod, _products(q_BKmD, k_n[j]) * scale, i, j)
            scores = jnp.where(blocks.mask(i, j), scores, -jnp.inf)
            new_maximum = jnp.maximum(maximum, scores.max(axis=-1))
            # A row that has seen no key yet has maximum -inf. Using 0 instead gives
            # exp(-inf - 0) = 0 and not nan.
            shift = jnp.where(new_maximum == -jnp.inf, 0.0, new_maximum)
            weights = jnp.exp(scores - shift[..., None])
            rescale = jnp.exp(maximum - shift)
            total = total * rescale + weights.sum(axis=-1)
            update = _dot("bkms,bksd->bkmd", weights.astype(v_n.dtype), v_n[j])
            return accumulated * rescale[..., None] + update, new_maximum, total

        rows = q_BKmD.shape[:-1]
        if sinks_H is None:
            maximum, total = jnp.full(rows, -jnp.inf), jnp.zeros(rows)
        else:  # a sink acts as a key that every query sees, with the value 0
            maximum, total = blocks.of_heads(sinks_H), jnp.ones(rows)
        start = jnp.zeros(q_BKmD.shape, jnp.float32), maximum, total
        accumulated, maximum, total = blocks.visit_keys(i, one_key_block, start)
        seen = total > 0
        out = accumulated / jnp.where(seen, total, 1.0)[..., None]
        # For a row without keys, +inf makes its probabilities exp(s - inf) = 0 in the backward
        # pass.
        maximum = jnp.where(seen, maximum, jnp.inf)
        return None, (out.astype(q_BTHD.dtype), maximum, jnp.where(seen, total, 1.0))

    _, (out_n, maximum_n, total_n) = lax.scan(one_query_block, None, jnp.arange(blocks.query_count))
    out_BTHD = name_residual(blocks.join_queries(out_n).reshape(q_BTHD.shape), ATTENTION_OUTPUT)
    # Save the two parts of the log-sum-exp. Rounding their float32 sum would lose the differences
    # between large scores.
    lse_n = name_residual(maximum_n, ATTENTION_LSE), name_residual(total_n, ATTENTION_LSE)
    lse_BHT = blocks.join_rows(jnp.where(jnp.isposinf(maximum_n), -jnp.inf, maximum_n + jnp.log(total_n)))
    return (out_BTHD, lse_BHT), (q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod, out_BTHD, lse_n)


def _backward(scale, residuals, cotangents):
    q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod, out_BTHD, (maximum_n, total_n) = residuals
    dout_BTHD, dlse_BHT = cotangents
    out_32, dout_32 = out_BTHD.astype(jnp.float32), dout_BTHD.astype(jnp.float32)
    delta_BHT = _products_of_rows(out_32, dout_32, _longest_of_a_difference(q_BTHD)) - dlse_BHT
    call = scale, q_BTHD, k_BSKD, v_BSKD, mask, score_mod
    dq_BTHD, dk_BSKD, dv_BSKD = blockwise_gradients(*call, (maximum_n, total_n), dout_BTHD, delta_BHT)
    dsinks_H = None
    if sinks_H is not None:
        # No cancellation happens here, so this delta does not have to match the rounding of another
        # product and can be computed with less error.
        blocks, own_delta_BHT = BlockPairs.of(mask, q_BTHD, k_BSKD), _row_products(out_32, dout_32) - dlse_BHT
        dsinks_H = _gradient_of_sinks(sinks_H, blocks, (maximum_n, total_n), own_delta_BHT)
    return dq_BTHD, dk_BSKD, dv_BSKD, dsinks_H, None, None


blockwise_attention.defvjp(_forward, _backward)


def blockwise_forward(
    scale: float, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask: Mask, score_mod: Any
) -> tuple[jax.Array, Any]:
    """(out, the log-sum-exp in the form that `blockwise_gradients` expects); not differentiable."""
    _, residuals = _forward(scale, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod)
    return residuals[-2:]


def blockwise_gradients(
    scale: float, q_BTHD, k_BSKD, v_BSKD, mask: Mask, score_mod: Any, lse_n: Any, dout_BTHD, delta_BHT
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq, dk, dv) from the log-sum-exp of the forward pass and `delta = sum over D of out dout`.

    delta is float32.
    """
    maximum_n, total_n = lse_n
    blocks = BlockPairs.of(mask, q_BTHD, k_BSKD)
    delta_BTH = jnp.swapaxes(delta_BHT, 1, 2)
    q_n = blocks.split_queries(_group_heads(q_BTHD, blocks.kv_heads))
    dout_n = blocks.split_queries(_group_heads(dout_BTHD, blocks.kv_heads))
    delta_n = blocks.split_queries(_group_heads(delta_BTH[..., None], blocks.kv_heads))
    k_n, v_n = blocks.split_keys(k_BSKD), blocks.split_keys(v_BSKD)
    longest = _longest_of_a_difference(q_BTHD)

    def one_key_block(dq_n, j):
        k_BKsD, v_BKsD = k_n[j], v_n[j]

        def one_query_block(i, carry):
            dq_n, dk, dv = carry
            scores, modification = _products(q_n[i], k_BKsD) * scale, None
            if score_mod is not None:
                scores, modification = jax.vjp(lambda s: blocks.modified(score_mod, s, i, j), scores)
            # Mask before the exponential: XLA computes the exponential in one pass only if nothing
            # but products follow it.
            scores = jnp.where(blocks.mask(i, j), scores, -jnp.inf)
            weights = jnp.exp(scores - maximum_n[i][..., None]) * (1 / total_n[i])[..., None]
            dweights = _products(dout_n[i], v_BKsD, longest)
            dscores = weights * (dweights - delta_n[i])
            if modification is not None:
                (dscores,) = modification(dscores)
            dscores = dscores.astype(q_BTHD.dtype)
            # dk and dv accumulate as [D, k]: that orientation of the product is a third faster on a
            # CPU.
            dv = dv + _dot("bkms,bkmd->bkds", weights.astype(dout_n.dtype), dout_n[i])
            dk = dk + _sum_over_queries(dscores, q_n[i])
            dq = lax.dynamic_index_in_dim(dq_n, i, keepdims=False) + _dot("bkms,bksd->bkmd", dscores, k_BKsD)
            return lax.dynamic_update_index_in_dim(dq_n, dq, i, axis=0), dk, dv

        zeros = jnp.zeros(jnp.swapaxes(k_BKsD, 2, 3).shape, jnp.float32)
        dq_n, dk, dv = blocks.visit_queries(j, one_query_block, (dq_n, zeros, zeros))
        # The scale of the scores is applied to dq and dk once, at the end.
        return dq_n, tuple(jnp.swapaxes(g, 2, 3).astype(k_BSKD.dtype) for g in (dk * scale, dv))

    dq_n, (dk_n, dv_n) = lax.scan(one_key_block, jnp.zeros(q_n.shape, jnp.float32), jnp.arange(blocks.key_count))
    dq_BTHD = blocks.join_queries(dq_n * scale).reshape(q_BTHD.shape).astype(q_BTHD.dtype)
    return dq_BTHD, blocks.join_keys(dk_n), blocks.join_keys(dv_n)


def _gradient_of_sinks(sinks_H: jax.Array, blocks: BlockPairs, lse_n: Any, delta_BHT: jax.Array) -> jax.Array:
    """A sink is a key with the value 0, so the gradient of its score is `p (0 - delta)`."""
    maximum_n, total_n = lse_n
    weights_BHT = blocks.join_rows(jnp.exp(blocks.of_heads(sinks_H)[None] - maximum_n) / total_n)
    return -jnp.sum(weights_BHT * delta_BHT, axis=(0, 2))


def _dot(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    # Full float32 precision: a GPU would round the operands to TF32 by default.
    precision = "highest" if x.dtype == jnp.float32 else None
    return jnp.einsum(equation, x, y, precision=precision, preferred_element_type=jnp.float32)


def _longest_of_a_difference(q_BTHD: jax.Array) -> int:
    return LONGEST_SUM_OF_A_DIFFERENCE if q_BTHD.dtype == jnp.float32 else LONGEST_SUM


def _products(x_BKmD: jax.Array, y_BKsD: jax.Array, longest: int = LONGEST_SUM) -> jax.Array:
    """`x y^T`, [B, K, m, s], in float32.

    A chain of additions has at most `longest` terms, except on a GPU's tensor cores.
    """
    equation = "bkmd,bksd->bkms"
    whole, in_parts = functools.partial(_dot, equation), functools.partial(_in_parts, equation, longest=longest)
    default = in_parts if x_BKmD.dtype == jnp.float32 else whole
    return lax.platform_dependent(x_BKmD, y_BKsD, cpu=in_parts, default=default)


def _sum_over_queries(x_BKms: jax.Array, y_BKmD: jax.Array) -> jax.Array:
    """`y^T x`, [B, K, D, s], in float32.

    On a CPU a chain of additions has at most `LONGEST_SUM_OF_QUERIES` terms.
    """
    equation = "bkms,bkmd->bkds"
    in_parts = functools.partial(_in_parts, equation, longest=LONGEST_SUM_OF_QUERIES, axis=2)
    return lax.platform_dependent(x_BKms, y_BKmD, cpu=in_parts, default=functools.partial(_dot, equation))


def _in_parts(equation: str, x: jax.Array, y: jax.Array, longest: int = LONGEST_SUM, axis: int = -1) -> jax.Array:
    """A product over `axis` of x and y: a pairwise sum of products of at most `longest` terms."""
    if x.shape[axis] <= longest:
        return _dot(equation, x, y)
    halves = zip(jnp.array_split(x, 2, axis=axis), jnp.array_split(y, 2, axis=axis), strict=True)
    return functools.reduce(jnp.add, [_in_parts(equation, *half, longest, axis) for half in halves])


def _row_products(x_BTHD: jax.Array, y_BTHD: jax.Array) -> jax.Array:
    """`sum over D of x y`, float32 [B, H, T].

    A CPU is fast at products, so there it is a product. A GPU computes a sum in a tree, so there it
    is a sum.
    """
    return lax.platform_dependent(
        x_BTHD,
        y_BTHD,
        cpu=functools.partial(_in_parts, "bthd,bthd->bht"),
        default=lambda x, y: jnp.swapaxes(jnp.sum(x * y, axis=-1), 1, 2),
    )


def _products_of_rows(x_BTHD: jax.Array, y_BTHD: jax.Array, longest: int) -> jax.Array:
    """`_row_products`; on a CPU the diagonals of matrix products of many rows.

    XLA adds in the same order in all such products. A value that equals a result of `_products`,
    with chains of the same length, therefore cancels with it to exactly 0 and not to a rounding
    error.
    """

    def diagonals(x, y):
        batch, tokens, heads, width = x.shape

        def in_rows(x_BTHD):
            padded = jnp.pad(x_BTHD, ((0, 0), (0, -tokens % ROWS_OF_A_PRODUCT), (0, 0), (0, 0)))
            return jnp.swapaxes(padded, 1, 2).reshape(batch, -1, ROWS_OF_A_PRODUCT, width)

        products_Bnrr = _in_parts("bkmd,bksd->bkms", in_rows(x), in_rows(y), longest)
        return jnp.diagonal(products_Bnrr, axis1=2, axis2=3).reshape(batch, heads, -1)[..., :tokens]

    return lax.platform_dependent(x_BTHD, y_BTHD, cpu=diagonals, default=_row_products)


def _group_heads(x_BTHD: jax.Array, kv_heads: int) -> jax.Array:
    batch, tokens, heads, width = x_BTHD.shape
    return x_BTHD.reshape(batch, tokens, kv_heads, heads // kv_heads, width)


def _run(call: AttentionCall) -> Result:
    arrays = call.q_BTHD, call.k_BSKD, call.v_BSKD
    return blockwise_attention(call.scale, *arrays, call.sinks_H, call.mask, call.score_mod)


def _forward_pass(call: AttentionCall) -> tuple[jax.Array, Any]:
    arrays = call.q_BTHD, call.k_BSKD, call.v_BSKD, call.sinks_H
    return blockwise_forward(call.scale, *arrays, call.mask, call.score_mod)


def _backward_pass(call: AttentionCall, lse: Any, dout_BTHD: jax.Array, delta_BHT: jax.Array) -> Gradients:
    arrays = call.q_BTHD, call.k_BSKD, call.v_BSKD
    gradients = blockwise_gradients(call.scale, *arrays, call.mask, call.score_mod, lse, dout_BTHD, delta_BHT)
    if call.sinks_H is None:
        return *gradients, None
    return *gradients, _gradient_of_sinks(call.sinks_H, BlockPairs.of(call.mask, *arrays[:2]), lse, delta_BHT)


def _read_lse(call: AttentionCall, lse: Any) -> tuple[jax.Array, jax.Array]:
    blocks = BlockPairs.of(call.mask, call.q_BTHD, call.k_BSKD)
    maximum_BHT, total_BHT = (blocks.join_rows(x_n) for x_n in lse)
    unseen = jnp.isposinf(maximum_BHT)
    return jnp.where(unseen, -jnp.inf, maximum_BHT), jnp.where(unseen, 0.0, total_BHT)


def _write_lse(call: AttentionCall, maximum_BHT: jax.Array, total_BHT: jax.Array) -> Any:
    blocks = BlockPairs.of(call.mask, call.q_BTHD, call.k_BSKD)
    unseen = total_BHT == 0
    parts = jnp.where(unseen, jnp.inf, maximum_BHT), jnp.where(unseen, 1.0, total_BHT)
    return tuple(blocks.split_rows(x_BHT) for x_BHT in parts)


BACKEND = Backend(
    name="xla",
    refusal=lambda call: None,
    run=_run,
    takes_segments=True,
    forward=_forward_pass,
    backward=_backward_pass,
    lse_form=LseForm(_read_lse, _write_lse),
)
