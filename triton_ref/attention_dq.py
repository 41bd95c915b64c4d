"""The dq kernel: one program per block of queries of a head.

It also writes delta, which the dk/dv kernel needs. With the weights P and dP = dout v^T:

    delta = rowsum(out * dout) - dlse        dS = P (dP - delta)        dq = scale dS k

Source: Dao, FlashAttention-2, arXiv 2307.08691; the cotangent of the log-sum-exp adds P dlse to dS.
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
    row_products,
    store_rows,
    visible_blocks,
    weights_of,
)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def dq_kernel(
    q, k, v, out, dout, base2_lse, totals, dlse, query_segments, key_segments, ranges, dq, delta,
    T, S, lower, upper, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, SOFT_CAP: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Like the forward kernel.

    dout and dq are [B, T, H, D]; dlse (or None) and delta are float32 [B, H, T].
    """
    blocks = tl.cdiv(T, QUERIES)
    head = tl.program_id(0) % HEADS
    block = blocks - 1 - (tl.program_id(0) // HEADS) % blocks
    batch = (tl.program_id(0) // HEADS // blocks).to(tl.int64)
    rows = batch * T * (HEADS * HEAD_DIM) + head * HEAD_DIM
    k += batch * S * (KV_HEADS * HEAD_DIM) + head // (HEADS // KV_HEADS) * HEAD_DIM
    v += batch * S * (KV_HEADS * HEAD_DIM) + head // (HEADS // KV_HEADS) * HEAD_DIM
    numbers = (batch * HEADS + head) * T
    query = block * QUERIES
    if query_segments is not None:
        query_segment = load_tokens(query_segments + batch * T, query, T, QUERIES, True)
        key_segments += batch * S
        ranges += (batch * blocks + block) * 4
    else:
        query_segment = None
    first, full_first, full_last, last = visible_blocks(block, T, S, lower, upper, ranges, QUERIES, KEYS)

    row = tl.arange(0, QUERIES)
    first_key = first_column(query + row, T, S, lower) if lower is not None else None
    last_key = last_column(query + row, T, S, upper)

    out_block = load_rows(out + rows, query, T, HEADS * HEAD_DIM, HEAD_DIM, (QUERIES, WIDTH), True)
    dout_block = load_rows(dout + rows, query, T, HEADS * HEAD_DIM, HEAD_DIM, (QUERIES, WIDTH), True)
    delta_row = row_products(dout_block, out_block)
    if dlse is not None:
        delta_row -= load_tokens(dlse + numbers, query, T, QUERIES, True)
    tl.store(delta + numbers + query + row, delta_row, mask=row < T - query)
    lse_row = load_tokens(base2_lse + numbers, query, T, QUERIES, True)[:, None]
    factor_row = factor_of(totals, numbers, query, T, QUERIES, True, 1)

    q_block = load_rows(q + rows, query, T, HEADS * HEAD_DIM, HEAD_DIM, (QUERIES, WIDTH), True)
    dq_block = tl.zeros((QUERIES, WIDTH), tl.float32)
    for n in range(first, last - (full_last - full_first)):
        n += tl.where(n < full_first, 0, full_last - full_first)
        dq_block = _add_dq(
            dq_block, q_block, dout_block, lse_row, factor_row, delta_row, k, v, n * KEYS,
            first_key, last_key, query_segment, key_segments, S, scale, KV_HEADS, HEAD_DIM, WIDTH, SOFT_CAP, KEYS, True,
        )  # fmt: skip
    for n in range(full_first, full_last):
        dq_block = _add_dq(
            dq_block, q_block, dout_block, lse_row, factor_row, delta_row, k, v, n * KEYS,
            first_key, last_key, query_segment, key_segments, S, scale, KV_HEADS, HEAD_DIM, WIDTH, SOFT_CAP, KEYS, False,
        )  # fmt: skip
    store_rows(dq + rows, query, T, dq_block * scale, HEADS * HEAD_DIM, HEAD_DIM)


@triton.jit
def _add_dq(
    dq_block, q_block, dout_block, lse_row, factor_row, delta_row, k, v, key,
    first_key, last_key, query_segment, key_segments, S, scale,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, SOFT_CAP: tl.constexpr,
    KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Returns dq / scale after adding a block of keys."""
    k_block = load_rows(k, key, S, KV_HEADS * HEAD_DIM, HEAD_DIM, (KEYS, WIDTH), MASKED)
    v_block = load_rows(v, key, S, KV_HEADS * HEAD_DIM, HEAD_DIM, (KEYS, WIDTH), MASKED)
    capped_scores, slope = capped(dot(q_block, k_block.T, None), scale, SOFT_CAP)
    scores = capped_scores
    if MASKED:
        scores = hide(scores, key, first_key, last_key, query_segment, key_segments, S)
    weights = weights_of(scores, slope, lse_row, factor_row)
    dscores = weights * (dot(dout_block, v_block.T, None) - delta_row[:, None])
    if SOFT_CAP is not None:
        dscores *= (1.0 - capped_scores) * (1.0 + capped_scores)
    return dot(dscores.to(k_block.dtype), k_block, dq_block)
