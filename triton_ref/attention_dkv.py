"""The dk/dv kernel: one program per block of keys of a key/value head.

A program loops over the queries of all heads of the group. It uses the transposed form, so that
the registers of P^T and dS^T have the layout that the next product needs:

    S^T = k q^T        dv = P^T dout        dP^T = v dout^T        dk = scale dS^T q

dk and dv are accumulated in float32 over all queries of all heads. See attention_dq.py for dS.
"""

# Kernel arguments are traced, and constants are unwrapped. Triton's annotations express neither.
# pyright: reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

from triton_ref.attention_forward import UNSPECIALIZED
from triton_ref.blocks import (
    capped,
    dot,
    factor_of,
    first_column,
    hide,
    last_column,
    load_rows,
    load_tokens,
    store_rows,
    visible_blocks,
    weights_of,
)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def dkv_kernel(
    q, k, v, dout, delta, base2_lse, totals, query_segments, key_segments, ranges, dk, dv,
    T, S, lower, upper, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, SOFT_CAP: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Like the dq kernel, but with the band as `lower <= query - key <= upper`."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    # Partly visible blocks are split into two slices, because their masks need registers.
    SLICES: tl.constexpr = min(2, QUERIES // 16)
    SLICE: tl.constexpr = QUERIES // SLICES
    blocks = tl.cdiv(S, KEYS)
    kv_head = tl.program_id(0) % KV_HEADS
    # Early keys come first, because they are seen by most queries.
    block = (tl.program_id(0) // KV_HEADS) % blocks
    batch = (tl.program_id(0) // KV_HEADS // blocks).to(tl.int64)
    q += batch * T * (HEADS * HEAD_DIM) + kv_head * (GROUP * HEAD_DIM)
    dout += batch * T * (HEADS * HEAD_DIM) + kv_head * (GROUP * HEAD_DIM)
    base2_lse += (batch * HEADS + kv_head * GROUP) * T
    delta += (batch * HEADS + kv_head * GROUP) * T
    if totals is not None:
        totals += (batch * HEADS + kv_head * GROUP) * T
    rows = batch * S * (KV_HEADS * HEAD_DIM) + kv_head * HEAD_DIM
    key = block * KEYS
    if key_segments is not None:
        key_segment = load_tokens(key_segments + batch * S, key, S, KEYS, True)
        query_segments += batch * T
        ranges += (batch * blocks + block) * 4
    else:
        key_segment = None
    first, full_first, full_last, last = visible_blocks(block, S, T, lower, upper, ranges, KEYS, QUERIES)
    # Rows beyond the last key would have weights exp2(0 - lse), which may overflow. All blocks of
    # such a program are masked.
    full_last = tl.where(key + KEYS <= S, full_last, full_first)
    row = key + tl.arange(0, KEYS)
    first_query = first_column(row, S, T, lower) if lower is not None else None
    # Queries beyond the last contribute zero and need no bound. Keys beyond the last are hidden by
    # either bound.
    last_query = last_column(row, S, T, upper) if upper is not None or lower is None else None

    k_block = load_rows(k + rows, key, S, KV_HEADS * HEAD_DIM, HEAD_DIM, (KEYS, WIDTH), True)
    v_block = load_rows(v + rows, key, S, KV_HEADS * HEAD_DIM, HEAD_DIM, (KEYS, WIDTH), True)
    dk_block = tl.zeros((KEYS, WIDTH), tl.float32)
    dv_block = tl.zeros((KEYS, WIDTH), tl.float32)
    # A single loop over blocks and heads, with heads varying fastest, so that loads are pipelined
    # across heads too. It goes from the last query to the first: early queries see few keys and
    # contribute most, and a sum rounds less if the large terms come last.
    whole = full_last - full_first
    for n in range(whole * GROUP):
        dk_block, dv_block = _add_dkv(
            dk_block, dv_block, k_block, v_block, q, dout, delta, base2_lse, totals,
            n % GROUP, (full_last - 1 - n // GROUP) * QUERIES,
            first_query, last_query, key_segment, query_segments, T, scale, HEADS, HEAD_DIM, WIDTH, SOFT_CAP, QUERIES, False,
        )  # fmt: skip
    for n in range((last - whole - first) * SLICES * GROUP):
        piece = (last - whole) * SLICES - 1 - n // GROUP
        piece += tl.where(piece < full_first * SLICES, 0, whole * SLICES)
        dk_block, dv_block = _add_dkv(
            dk_block, dv_block, k_block, v_block, q, dout, delta, base2_lse, totals, n % GROUP, piece * SLICE,
            first_query, last_query, key_segment, query_segments, T, scale, HEADS, HEAD_DIM, WIDTH, SOFT_CAP, SLICE, True,
        )  # fmt: skip
    store_rows(dk + rows, key, S, dk_block * scale, KV_HEADS * HEAD_DIM, HEAD_DIM)
    store_rows(dv + rows, key, S, dv_block, KV_HEADS * HEAD_DIM, HEAD_DIM)


@triton.jit
def _add_dkv(
    dk_block, dv_block, k_block, v_block, q, dout, delta, base2_lse, totals, head, query,
    first_query, last_query, key_segment, query_segments, T, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, SOFT_CAP: tl.constexpr,
    QUERIES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Returns (dk / scale, dv) after adding a block of queries of one head of the group."""
    numbers = tl.cast(head, tl.int64) * T
    q_block = load_rows(q + head * HEAD_DIM, query, T, HEADS * HEAD_DIM, HEAD_DIM, (QUERIES, WIDTH), MASKED)
    dout_block = load_rows(dout + head * HEAD_DIM, query, T, HEADS * HEAD_DIM, HEAD_DIM, (QUERIES, WIDTH), MASKED)
    lse_row = load_tokens(base2_lse + numbers, query, T, QUERIES, MASKED)[None, :]
    factor_row = factor_of(totals, numbers, query, T, QUERIES, MASKED, 0)
    delta_row = load_tokens(delta + numbers, query, T, QUERIES, MASKED)[None, :]
    capped_scores, slope = capped(dot(k_block, q_block.T, None), scale, SOFT_CAP)
    scores = capped_scores
    if MASKED:
        scores = hide(scores, query, first_query, last_query, key_segment, query_segments, T)
    weights = weights_of(scores, slope, lse_row, factor_row)
    dv_block = dot(weights.to(dout_block.dtype), dout_block, dv_block)
    dscores = weights * (dot(v_block, dout_block.T, None) - delta_row)
    if SOFT_CAP is not None:
        dscores *= (1.0 - capped_scores) * (1.0 + capped_scores)
    return dot(dscores.to(q_block.dtype), q_block, dk_block), dv_block
