"""The forward kernel: one program per block of queries of a head, with an online softmax over keys.

Exponentials and maxima are in base 2 until the log-sum-exp is stored.
Source: Dao, FlashAttention-2, arXiv 2307.08691.
"""

# Kernel arguments are traced, and constants are unwrapped. Triton's annotations express neither.
# pyright: reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl

from triton_ref.blocks import (
    LN2,
    LOG2E,
    capped,
    dot,
    exp2_for,
    first_column,
    hide,
    last_column,
    load_rows,
    load_tokens,
    store_rows,
    visible_blocks,
)

# T and S are specialized: if T is a multiple of 16, rows of numbers are loaded in wide accesses.
UNSPECIALIZED = ["lower", "upper"]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    q, k, v, sinks, query_segments, key_segments, ranges, out, lse, base2_lse, totals,
    T, S, lower, upper, scale,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, SOFT_CAP: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, COMPENSATED: tl.constexpr,
):  # fmt: skip
    """Computes out, lse and, for the backward pass, base2_lse and totals.

    Shapes: q, out [B, T, H, D]; k, v [B, S, K, D]; sinks [H]; segments [B, T] and [B, S]; ranges
    [B, blocks, 4]; lse, base2_lse and totals float32 [B, H, T].

    A single number base2_lse cannot represent small differences of large scores. With `totals`,
    base2_lse is therefore only the maximum, and totals is the sum of the weights relative to it.
    COMPENSATED selects Kahan summation for that sum, which matters for a million keys.
    """
    blocks = tl.cdiv(T, QUERIES)
    head = tl.program_id(0) % HEADS
    # Heads vary fastest, so that the heads of a group share keys in the cache. Late queries come
    # first, because they see most keys.
    block = blocks - 1 - (tl.program_id(0) // HEADS) % blocks
    batch = (tl.program_id(0) // HEADS // blocks).to(tl.int64)
    q += batch * T * (HEADS * HEAD_DIM) + head * HEAD_DIM
    out += batch * T * (HEADS * HEAD_DIM) + head * HEAD_DIM
    k += batch * S * (KV_HEADS * HEAD_DIM) + head // (HEADS // KV_HEADS) * HEAD_DIM
    v += batch * S * (KV_HEADS * HEAD_DIM) + head // (HEADS // KV_HEADS) * HEAD_DIM
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

    q_block = load_rows(q, query, T, HEADS * HEAD_DIM, HEAD_DIM, (QUERIES, WIDTH), True)
    weighted = tl.zeros((QUERIES, WIDTH), tl.float32)
    if sinks is None:
        maximum = tl.full((QUERIES,), float("-inf"), tl.float32)
        total = tl.zeros((QUERIES,), tl.float32)
    else:
        # The sink is like a key without a value, whose weight relative to its own score is 1.
        maximum = tl.zeros((QUERIES,), tl.float32) + tl.load(sinks + head) * LOG2E
        total = tl.full((QUERIES,), 1.0, tl.float32)
    if COMPENSATED:
        lost = tl.zeros((QUERIES,), tl.float32)

    # The partly visible blocks are on both sides of the full ones.
    for n in range(first, last - (full_last - full_first)):
        n += tl.where(n < full_first, 0, full_last - full_first)
        weighted, rescale, added, maximum = _attend(
            weighted, maximum, q_block, k, v, n * KEYS, first_key, last_key, query_segment, key_segments,
            S, scale, KV_HEADS, HEAD_DIM, WIDTH, SOFT_CAP, KEYS, True,
        )  # fmt: skip
        if COMPENSATED:
            total, lost = _compensated(total * rescale, lost * rescale, added)
        else:
            total = total * rescale + added
    for n in range(full_first, full_last):
        weighted, rescale, added, maximum = _attend(
            weighted, maximum, q_block, k, v, n * KEYS, first_key, last_key, query_segment, key_segments,
            S, scale, KV_HEADS, HEAD_DIM, WIDTH, SOFT_CAP, KEYS, False,
        )  # fmt: skip
        if COMPENSATED:
            total, lost = _compensated(total * rescale, lost * rescale, added)
        else:
            total = total * rescale + added

    seen = total > 0
    safe_total = tl.where(seen, total, 1.0)
    store_rows(out, query, T, weighted / safe_total[:, None], HEADS * HEAD_DIM, HEAD_DIM)
    numbers = (batch * HEADS + head) * T + query + row
    log2_total = tl.log2(safe_total)
    # A fused multiply-add avoids rounding the product.
    whole_lse = tl.fma(maximum, LN2, log2_total * LN2)
    tl.store(lse + numbers, tl.where(seen, whole_lse, float("-inf")), mask=row < T - query)
    if totals is None:
        maximum += log2_total
    else:
        tl.store(totals + numbers, safe_total, mask=row < T - query)
    # With +inf, the weights of a row that sees nothing are exp2(-inf - inf) = 0.
    tl.store(base2_lse + numbers, tl.where(seen, maximum, float("inf")), mask=row < T - query)


@triton.jit
def _attend(
    weighted, maximum, q_block, k, v, key, first_key, last_key, query_segment, key_segments, S, scale,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, SOFT_CAP: tl.constexpr,
    KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds a block of keys to the online softmax.

    Returns (weighted values, the factor of the total weight so far, what is added to it, maximum).
    """
    k_block = load_rows(k, key, S, KV_HEADS * HEAD_DIM, HEAD_DIM, (KEYS, WIDTH), MASKED)
    scores, slope = capped(dot(q_block, k_block.T, None), scale, SOFT_CAP)
    if MASKED:
        scores = hide(scores, key, first_key, last_key, query_segment, key_segments, S)
    new_maximum = tl.maximum(maximum, tl.max(scores, 1) * slope)
    shift = new_maximum
    if MASKED:
        # For a row that has seen no key, 0 replaces -inf, so that exp2(-inf - shift) is 0 and not
        # nan.
        shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    weights = exp2_for(q_block.dtype, scores * slope - shift[:, None])
    rescale = exp2_for(q_block.dtype, maximum - shift)
    v_block = load_rows(v, key, S, KV_HEADS * HEAD_DIM, HEAD_DIM, (KEYS, WIDTH), MASKED)
    weighted = dot(weights.to(v_block.dtype), v_block, weighted * rescale[:, None])
    return weighted, rescale, tl.sum(weights, 1), new_maximum


@triton.jit
def _compensated(total, lost, added):
    """Returns (total + added, rounding error): Kahan summation with the earlier error `lost`."""
    added += lost
    new_total = total + added
    return new_total, added - (new_total - total)
