"""The backward kernel for queries, which also computes delta for the kernel of keys and values.

    delta_t = sum_d dout_td out_td - dlse_t
    ds_ts = exp(x_ts - lse_t) (dout_t . v_s - delta_t),   dq_t = scale sum_s ds_ts k_s

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, D head_dim; a step
has M queries and N keys.
Source: Dao, FlashAttention-2, arXiv 2307.08691.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from lcjax.pallas.triton import scores
from lcjax.pallas.triton.launch import (
    add_product,
    dot_transposed,
    exp2_of_line,
    in_registers,
    launch,
    store,
    tables,
    whole,
)
from lcjax.pallas.triton.scores import KernelSpec


def attention_dq(
    spec: KernelSpec,
    q_BTHD,
    k_BSKD,
    v_BSKD,
    out_BTHD,
    dout_BTHD,
    lse_BHT,
    total_BHT,
    dlse_BHT,
    mask,
    score_mod,
    schedule,
    *,
    delta_BHT=None,
    in_place: bool = False,
):
    """(dq [B, T, H, D] in q's dtype, delta float32 [B, H, T]).

    Args:
      lse_BHT, total_BHT: results of `attention_forward`.
      dlse_BHT: float32 cotangent of the log-sum-exp in base e, or None.
      mask, score_mod, schedule: as for `attention_forward`; the schedule is for this spec's sizes.
      delta_BHT: delta if it is already known; then out and dlse are not read and may be None.
      in_place: dq reuses q's memory: each program reads the block of queries whose gradient it then
        writes.
    """
    sizes, blocks = spec.blocks, spec.query_blocks
    query_spec = pl.BlockSpec((None, sizes.query_block, None, spec.width), lambda h, i, b: (b, blocks - 1 - i, h, 0))
    key_spec = pl.BlockSpec((None, spec.keys, None, spec.width), lambda h, i, b: (b, 0, h // spec.group, 0))
    row_spec = pl.BlockSpec((None, None, sizes.query_block), lambda h, i, b: (b, h, blocks - 1 - i))
    extras = (mask, score_mod, schedule)
    dq_BTHD, new_delta_BHT = launch(
        functools.partial(_kernel, spec=spec),
        q_BTHD,
        k_BSKD,
        v_BSKD,
        out_BTHD,
        dout_BTHD,
        lse_BHT,
        total_BHT,
        dlse_BHT,
        delta_BHT,
        *extras,
        name="attention_dq",
        grid=(spec.heads, blocks, spec.batch),
        in_specs=(
            *(query_spec, key_spec, key_spec, None if out_BTHD is None else query_spec, query_spec, row_spec),
            *(None if x is None else row_spec for x in (total_BHT, dlse_BHT, delta_BHT)),
            *jax.tree.map(whole, extras),
        ),
        out_specs=(query_spec, row_spec if delta_BHT is None else None),
        out_shape=(
            jax.ShapeDtypeStruct(q_BTHD.shape, q_BTHD.dtype),
            jax.ShapeDtypeStruct(lse_BHT.shape, jnp.float32) if delta_BHT is None else None,
        ),
        num_warps=sizes.num_warps,
        num_stages=sizes.num_stages,
        input_output_aliases={0: 0} if in_place else None,
    )
    return dq_BTHD, delta_BHT if new_delta_BHT is None else new_delta_BHT


def _kernel(
    q_ref, k_ref, v_ref, out_ref, dout_ref, lse_ref, total_ref, dlse_ref, given_delta_ref, mask, score_mod, schedule,
    dq_ref, delta_ref, *, spec: KernelSpec, native: bool,
):  # fmt: skip
    mask, score_mod, schedule = (tables(x) for x in (mask, score_mod, schedule))
    b, h, i = pl.program_id(2), pl.program_id(0), spec.query_blocks - 1 - pl.program_id(1)
    q_rows = spec.queries(i)
    length = spec.tokens if spec.ragged_queries else None
    q_inside = spec.inside(q_rows if spec.ragged_queries else None, spec.tokens)
    q_MD, dout_MD = (scores.load_tile(spec, ref, q_inside) for ref in (q_ref, dout_ref))
    if given_delta_ref is not None:
        delta_M = scores.load_rows(given_delta_ref, q_rows, length, 0.0)
    else:
        delta_M = scores.row_products(scores.load_tile(spec, out_ref, q_inside), dout_MD, native=native)
        if dlse_ref is not None:
            delta_M = delta_M - scores.load_rows(dlse_ref, q_rows, length, 0.0)
    offset_M, factor_M = scores.load_softmax(lse_ref, total_ref, q_rows, length, native=native)

    if spec.blocks.from_registers:
        dout_MD = in_registers(dout_MD, native=native)
    slope = scores.slope(spec, score_mod)

    def visit(n, dq_MD, *, column, partial: bool):
        j = column(n)
        k_rows = spec.keys_of(j)
        kv_inside = spec.inside(k_rows if partial and spec.ragged_keys else None, spec.keys)
        k_ND, v_ND = (
            scores.load_tile(spec, ref, kv_inside, pl.ds(j * spec.blocks.key_block, spec.blocks.key_block))
            for ref in (k_ref, v_ref)
        )
        indices = b, h, q_rows[:, None], k_rows[None, :]
        x_MN, derivative = scores.logits_and_derivative(
            dot_transposed(q_MD, k_ND, native=native), spec, score_mod, indices
        )
        weights_MN = exp2_of_line(x_MN, slope, offset_M[:, None], precise=factor_M is not None, native=native)
        if factor_M is not None:
            weights_MN = weights_MN * factor_M[:, None]
        if partial:
            visible = mask(*indices)
            if spec.ragged_keys:
                visible = visible & (k_rows < spec.keys)[None, :]
            weights_MN = jnp.where(visible, weights_MN, 0.0)
        ds_MN = weights_MN * (dot_transposed(dout_MD, v_ND, native=native) - delta_M[:, None])
        if derivative is not None:
            ds_MN = ds_MN * derivative
        return add_product(dq_MD, ds_MN.astype(k_ref.dtype), k_ND, native=native)

    dq_MD = tuple(jnp.zeros(x.shape, jnp.float32) for x in q_MD)
    for partial, (count, column) in ((False, schedule.full(b, h, i)), (True, schedule.partial(b, h, i))):
        dq_MD = lax.fori_loop(0, count, functools.partial(visit, column=column, partial=partial), dq_MD)
    scores.store_tile(spec, dq_ref, scores.scaled(dq_MD, spec.scale), q_inside)
    if delta_ref is not None:
        store(delta_ref, delta_M, mask=q_rows < spec.tokens if spec.ragged_queries else None)
