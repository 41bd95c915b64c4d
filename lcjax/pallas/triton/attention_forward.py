"""The forward kernel: each block of queries loops over the blocks of keys that it sees.

It computes a running softmax:

    out = sum_s exp(x_s - lse) v_s,   lse = log(sum_s exp(x_s)),   x the logits

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, D head_dim; a step
has M queries and N keys.
Source: Dao, FlashAttention-2, arXiv 2307.08691; the compensated sum: Kahan, Communications of the
ACM 8(1), 1965.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from lcjax.pallas.triton import scores
from lcjax.pallas.triton.block_sizes import MIN_PROGRAMS_PER_HEAD
from lcjax.pallas.triton.launch import (
    add_product,
    dot_transposed,
    exp2,
    exp2_of_line,
    launch,
    reciprocal,
    store,
    tables,
    wait_for_wgmma,
    whole,
)
from lcjax.pallas.triton.scores import LOG2_E, MASK_VALUE, KernelSpec

# For more keys than this the sum is compensated. A chain of float32 additions, one per block of
# keys, loses the last bits of the log-sum-exp at a million keys. For fewer keys the rounding error
# is smaller than that of the exponentials.
MANY_KEYS = 2**17


def attention_forward(
    spec: KernelSpec, q_BTHD, k_BSKD, v_BSKD, sinks_H, mask, score_mod, schedule, *, in_place: bool = False
):
    """(out [B, T, H, D] in q's dtype, lse float32 [B, H, T], total).

    lse is +inf for a query without a key or a sink. For float32 inputs lse is only the largest
    logit, in base 2, and total, float32 [B, H, T], is the sum of the weights relative to it.
    Rounding their sum, the log-sum-exp, would lose the differences between large scores. For other
    dtypes total is None.

    Args:
      sinks_H: float32 or None.
      mask: a `lcjax.ops.attention.masks.Mask`.
      score_mod: a pytree that is called as `score_mod(score, b, h, q, k)`, or None.
      schedule: of the mask, with queries as rows, for the spec's sizes.
      in_place: out reuses q's memory: each program reads the block of queries that it then writes.
    """
    sizes = spec.blocks
    query_spec = _block_spec(spec, (None, sizes.query_block, None, spec.width), lambda b, h, i: (b, i, h, 0))
    key_spec = _block_spec(spec, (None, spec.keys, None, spec.width), lambda b, h, i: (b, 0, h // spec.group, 0))
    row_spec = _block_spec(spec, (None, None, sizes.query_block), lambda b, h, i: (b, h, i))
    row = jax.ShapeDtypeStruct((spec.batch, spec.heads, spec.tokens), jnp.float32)
    extras = (sinks_H, mask, score_mod, schedule)
    return launch(
        functools.partial(_kernel, spec=spec),
        q_BTHD,
        k_BSKD,
        v_BSKD,
        *extras,
        name="attention_forward",
        grid=(*grid_order(spec, spec.heads, spec.query_blocks), spec.batch),
        in_specs=(query_spec, key_spec, key_spec, *jax.tree.map(whole, extras)),
        out_specs=(query_spec, row_spec, row_spec if spec.is_float32 else None),
        out_shape=(jax.ShapeDtypeStruct(q_BTHD.shape, q_BTHD.dtype), row, row if spec.is_float32 else None),
        num_warps=sizes.num_warps,
        num_stages=sizes.num_stages,
        input_output_aliases={0: 0} if in_place else None,
    )


def grid_order(spec: KernelSpec, heads: Any, blocks: Any) -> tuple[Any, Any]:
    """Heads and blocks of queries, or their counts, in the order of the grid, or back from it.

    The second varies last.
    """
    by_head = spec.blocks.one_head_at_a_time and spec.query_blocks >= MIN_PROGRAMS_PER_HEAD
    return (blocks, heads) if by_head else (heads, blocks)


def _place(spec: KernelSpec, first: Any, second: Any, b: Any) -> tuple[Any, Any, Any]:
    """(sequence, head, block of queries) of a program of the grid.

    The last queries see most keys under a causal mask: they start first, so that no long program is
    left for the end.
    """
    h, i = grid_order(spec, first, second)
    return b, h, spec.query_blocks - 1 - i


def _block_spec(spec: KernelSpec, shape: tuple, index: Callable[..., tuple]) -> pl.BlockSpec:
    return pl.BlockSpec(shape, lambda *program: index(*_place(spec, *program)))


def _kernel(
    q_ref, k_ref, v_ref, sinks, mask, score_mod, schedule, out_ref, lse_ref, total_ref,
    *, spec: KernelSpec, native: bool,
):  # fmt: skip
    sinks, mask, score_mod, schedule = (tables(x) for x in (sinks, mask, score_mod, schedule))
    b, h, i = _place(spec, *(pl.program_id(axis) for axis in range(3)))
    q_rows = spec.queries(i)
    q_inside = spec.inside(q_rows if spec.ragged_queries else None, spec.tokens)
    q_MD = scores.load_tile(spec, q_ref, q_inside)

    slope = scores.slope(spec, score_mod)
    is_float32 = spec.is_float32
    compensated = spec.keys > MANY_KEYS

    def visit(n, carry, *, column, partial: bool, pieces: int):
        out_MD, maximum_M, total_M, lost_M = carry
        size = spec.blocks.key_block // pieces
        block, piece = lax.div(n, jnp.int32(pieces)), lax.rem(n, jnp.int32(pieces))
        first = column(block) * spec.blocks.key_block + piece * size
        k_rows = first + jnp.arange(size, dtype=jnp.int32)
        kv_inside = spec.inside(k_rows if partial and spec.ragged_keys else None, spec.keys)
        block = pl.ds(first, size)
        k_ND = scores.load_tile(spec, k_ref, kv_inside, block)
        if spec.blocks.wait_for_wgmma:
            maximum_M = wait_for_wgmma(maximum_M, native=native)
        indices = b, h, q_rows[:, None], k_rows[None, :]
        x_MN = scores.logits(dot_transposed(q_MD, k_ND, native=native), spec, score_mod, indices)
        if partial:
            visible = mask(*indices)
            if spec.ragged_keys:
                visible = visible & (k_rows < spec.keys)[None, :]
            x_MN = jnp.where(visible, x_MN, MASK_VALUE)
        new_maximum_M = jnp.maximum(maximum_M, jnp.max(x_MN, axis=1) * slope)
        weights_MN = exp2_of_line(x_MN, slope, new_maximum_M[:, None], precise=is_float32, native=native)
        rescale_M = exp2(maximum_M - new_maximum_M, precise=is_float32, native=native)
        former_M, added_M = total_M * rescale_M, jnp.sum(weights_MN, axis=1)
        if compensated:
            added_M += lost_M * rescale_M
        total_M = former_M + added_M
        if compensated:
            lost_M = added_M - (total_M - former_M)
        v_ND = scores.load_tile(spec, v_ref, kv_inside, block)
        weights_MN = weights_MN.astype(v_ref.dtype)
        out_MD = add_product(scores.scaled(out_MD, rescale_M[:, None]), weights_MN, v_ND, native=native)
        return out_MD, new_maximum_M, total_M, lost_M

    rows = (spec.blocks.query_block,)
    mask_value = MASK_VALUE * slope
    total_M, lost_M = jnp.zeros(rows, jnp.float32), jnp.zeros(rows, jnp.float32) if compensated else None
    zeros_MD = tuple(jnp.zeros(x.shape, jnp.float32) for x in q_MD)
    carry = zeros_MD, jnp.full(rows, mask_value, jnp.float32), total_M, lost_M
    for partial, visits in ((False, schedule.full), (True, schedule.partial)):
        count, column = visits(b, h, i)
        pieces = 2 if partial and spec.blocks.save_registers else 1
        step = functools.partial(visit, column=column, partial=partial, pieces=pieces)
        carry = lax.fori_loop(0, count * pieces, step, carry)
    out_MD, maximum_M, total_M, _ = carry
    out_MD, maximum_M, total_M = _finish(
        out_MD, maximum_M, total_M, mask_value, None if sinks is None else sinks[h] * LOG2_E, native
    )
    in_rows = q_rows < spec.tokens if spec.ragged_queries else None
    if spec.blocks.save_registers:
        scores.store_tile_with_new_addresses(out_ref, out_MD, q_inside, native=native)
    else:
        scores.store_tile(spec, out_ref, out_MD, q_inside)
    if total_ref is None:
        store(lse_ref, scores.in_base_e(maximum_M, total_M, slope, native=native), mask=in_rows)
    else:
        store(lse_ref, maximum_M, mask=in_rows)
        store(total_ref, total_M, mask=in_rows)


def _finish(out_MD, maximum_M, total_M, mask_value, sink, native):
    """(out, maximum, total), the sink included; a query that saw no key gives 0, +inf and 1."""
    # In a row without a visible key every masked logit has counted as 2^(mask_value - mask_value) =
    # 1.
    seen_M = maximum_M > mask_value
    total_M = jnp.where(seen_M, total_M, 0.0)
    rescale_M = jnp.where(seen_M, 1.0, 0.0)
    if sink is not None:
        new_maximum_M = jnp.maximum(maximum_M, sink)
        rescale_M = rescale_M * jnp.exp2(maximum_M - new_maximum_M)
        total_M = total_M * rescale_M + jnp.exp2(sink - new_maximum_M)
        maximum_M = new_maximum_M
    positive_M = total_M > 0
    safe_M = jnp.where(positive_M, total_M, 1.0)
    factor_M = rescale_M * reciprocal(safe_M, native=native)
    return scores.scaled(out_MD, factor_M[:, None]), jnp.where(positive_M, maximum_M, jnp.inf), safe_M
