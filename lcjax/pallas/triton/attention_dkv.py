"""The backward kernel for keys and values: each block of keys loops over the blocks of queries.

    dv_s = sum_t p_ts dout_t,   dk_s = scale sum_t ds_ts q_t
    p_ts = exp(x_ts - lse_t),   ds as in `attention_dq`

It visits only blocks of queries that see the keys. Scores are computed transposed, keys by queries,
so that p and ds are read from registers in their second product. One program processes the query
heads of a group one after another, so dk and dv stay float32 until they are stored once.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, G = H / K, D
head_dim; a step has M queries and N keys.
Source: Dao, FlashAttention-2, arXiv 2307.08691.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from lcjax.pallas.triton import scores
from lcjax.pallas.triton.launch import add_product, dot_transposed, exp2_of_line, in_registers, launch, tables, whole
from lcjax.pallas.triton.scores import KernelSpec


def attention_dkv(
    spec: KernelSpec, q_BTHD, k_BSKD, v_BSKD, dout_BTHD, lse_BHT, total_BHT, delta_BHT, mask, score_mod, schedule
):
    """(dk, dv), [B, S, K, D] in k's dtype.

    lse is the input and delta a result of `attention_dq`. The schedule has keys as rows.
    """
    sizes, group = spec.blocks, spec.group
    query_spec = pl.BlockSpec((None, spec.tokens, group, spec.width), lambda kv, j, b: (b, 0, kv, 0))
    key_spec = pl.BlockSpec((None, sizes.key_block, None, spec.width), lambda kv, j, b: (b, j, kv, 0))
    row_spec = pl.BlockSpec((None, group, spec.tokens), lambda kv, j, b: (b, kv, 0))
    extras = (mask, score_mod, schedule)
    return launch(
        functools.partial(_kernel, spec=spec),
        q_BTHD,
        k_BSKD,
        v_BSKD,
        dout_BTHD,
        lse_BHT,
        total_BHT,
        delta_BHT,
        *extras,
        name="attention_dkv",
        grid=(spec.kv_heads, spec.key_blocks, spec.batch),
        in_specs=(
            *(query_spec, key_spec, key_spec, query_spec, row_spec),
            None if total_BHT is None else row_spec,
            row_spec,
            *jax.tree.map(whole, extras),
        ),
        out_specs=(key_spec, key_spec),
        out_shape=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k_BSKD, v_BSKD)),
        num_warps=sizes.num_warps,
        num_stages=sizes.num_stages,
    )


def _kernel(
    q_ref, k_ref, v_ref, dout_ref, lse_ref, total_ref, delta_ref, mask, score_mod, schedule, dk_ref, dv_ref,
    *, spec: KernelSpec, native: bool,
):  # fmt: skip
    mask, score_mod, schedule = (tables(x) for x in (mask, score_mod, schedule))
    b, kv, j = pl.program_id(2), pl.program_id(0), pl.program_id(1)
    block = spec.blocks.query_block
    k_rows = spec.keys_of(j)
    kv_inside = spec.inside(k_rows if spec.ragged_keys else None, spec.keys)
    k_ND, v_ND = (scores.load_tile(spec, ref, kv_inside) for ref in (k_ref, v_ref))

    if spec.blocks.from_registers:
        k_ND, v_ND = (in_registers(x, native=native) for x in (k_ND, v_ND))
    slope = scores.slope(spec, score_mod)

    def visit(n, carry, *, head_in_group, column, partial: bool):
        dk_ND, dv_ND = carry
        i = column(n)
        q_rows = spec.queries(i)
        ragged = partial and spec.ragged_queries
        q_inside = spec.inside(q_rows if ragged else None, spec.tokens)
        q_MD, dout_MD = (
            scores.load_tile(spec, ref, q_inside, pl.ds(i * block, block), head_in_group) for ref in (q_ref, dout_ref)
        )
        length = spec.tokens if ragged else None
        row_view = head_in_group, pl.ds(i * block, block)
        totals = None if total_ref is None else total_ref.at[row_view]
        indices = b, kv * spec.group + head_in_group, q_rows[None, :], k_rows[:, None]
        x_NM, derivative = scores.logits_and_derivative(
            dot_transposed(k_ND, q_MD, native=native), spec, score_mod, indices
        )
        # Both products come before the exponentials in program order, so that the following
        # elementwise work overlaps with the product of dv.
        dweights_NM = dot_transposed(v_ND, dout_MD, native=native)
        # Load a row's statistics only when they are needed, because registers are scarce.
        offset_M, factor_M = scores.load_softmax(lse_ref.at[row_view], totals, q_rows, length, native=native)
        weights_NM = exp2_of_line(x_NM, slope, offset_M[None, :], precise=factor_M is not None, native=native)
        if factor_M is not None:
            weights_NM = weights_NM * factor_M[None, :]
        if partial:
            weights_NM = jnp.where(mask(*indices), weights_NM, 0.0)
        dv_ND = add_product(dv_ND, weights_NM.astype(dout_ref.dtype), dout_MD, native=native)
        delta_M = scores.load_rows(delta_ref.at[row_view], q_rows, length, 0.0)
        ds_NM = weights_NM * (dweights_NM - delta_M[None, :])
        if derivative is not None:
            ds_NM = ds_NM * derivative
        return add_product(dk_ND, ds_NM.astype(q_ref.dtype), q_MD, native=native), dv_ND

    def visit_heads(first_head, heads, carry):
        h = kv * spec.group + first_head
        for partial, (count, column) in ((False, schedule.full(b, h, j)), (True, schedule.partial(b, h, j))):

            def step(n, carry, count=count, column=column, partial=partial):
                last, head = lax.div(n, jnp.int32(heads)), lax.rem(n, jnp.int32(heads))
                return visit(count - 1 - last, carry, head_in_group=first_head + head, column=column, partial=partial)

            carry = lax.fori_loop(0, count * heads, step, carry)
        return carry

    # Go from the last query to the first. If all heads of the group see the same blocks, process
    # all heads in each block. The first queries see few keys, so their contributions are the
    # largest, and a sum that ends with the largest terms has less rounding error. Half precision
    # has larger errors anyway, and not enough registers for all heads.
    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in k_ND)
    if spec.is_float32 and schedule.is_of_all_heads:
        dk_ND, dv_ND = visit_heads(0, spec.group, (zeros, zeros))
    else:
        dk_ND, dv_ND = lax.fori_loop(0, spec.group, lambda head, carry: visit_heads(head, 1, carry), (zeros, zeros))
    scores.store_tile(spec, dk_ref, scores.scaled(dk_ND, spec.scale), kv_inside)
    scores.store_tile(spec, dv_ref, dv_ND, kv_inside)
