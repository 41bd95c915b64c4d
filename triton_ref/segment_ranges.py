"""Which blocks of keys a block of queries can see by segment ids, or the other way round, in O(T) memory.

A block of ids is known by its least and greatest. Two blocks may share an id where these ranges meet, and are one segment where
all four are equal. Exact for ids in ascending order; errs on the side of work for others.
"""

# What a kernel is given is traced, and constants arrive unwrapped: Triton's annotations say
# neither.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

COLUMNS_A_STEP = 1024


@triton.jit
def _ranges_kernel(rows, columns, ranges, row_blocks, column_blocks, STEP: tl.constexpr):
    """rows [2, B, row blocks] and columns [2, B, column blocks]: least and greatest ids; ranges [B, row blocks, 4]."""
    batches = tl.num_programs(0) // row_blocks
    batch = (tl.program_id(0) // row_blocks).to(tl.int64)
    row = tl.program_id(0)
    low = tl.load(rows + row)
    high = tl.load(rows + tl.num_programs(0) + row)
    first, last = column_blocks, 0 * column_blocks
    full_first, full_last, full_count = column_blocks, 0 * column_blocks, 0 * column_blocks
    for start in range(0, column_blocks, STEP):
        column = start + tl.arange(0, STEP)
        inside = column < column_blocks
        lows = tl.load(columns + batch * column_blocks + column, mask=inside, other=0)
        highs = tl.load(columns + (batches + batch) * column_blocks + column, mask=inside, other=0)
        seen = inside & (low <= highs) & (lows <= high)
        full = seen & (low == high) & (lows == highs)
        first = tl.minimum(first, tl.min(tl.where(seen, column, column_blocks), 0))
        last = tl.maximum(last, tl.max(tl.where(seen, column + 1, 0), 0))
        full_first = tl.minimum(full_first, tl.min(tl.where(full, column, column_blocks), 0))
        full_last = tl.maximum(full_last, tl.max(tl.where(full, column + 1, 0), 0))
        full_count += tl.sum(full.to(tl.int32), 0)
    # Full blocks that are not one run, which only ids out of order can give, are left to the masked
    # loop.
    full_last = tl.where(full_last - full_first == full_count, full_last, full_first)
    ranges += row.to(tl.int64) * 4
    tl.store(ranges, first)
    tl.store(ranges + 1, full_first)
    tl.store(ranges + 2, full_last)
    tl.store(ranges + 3, last)


def segment_ranges(rows_BT: torch.Tensor, columns_BS: torch.Tensor, row_block: int, column_block: int) -> torch.Tensor:
    """int32 [B, blocks of rows, 4]: (first, full_first, full_last, last) as in `blocks.visible_blocks`."""
    rows, columns = _least_and_greatest(rows_BT, row_block), _least_and_greatest(columns_BS, column_block)
    ranges = torch.empty((*rows.shape[1:], 4), dtype=torch.int32, device=rows.device)
    grid = (rows[0].numel(),)
    _ranges_kernel[grid](rows, columns, ranges, rows.shape[2], columns.shape[2], STEP=COLUMNS_A_STEP)
    return ranges


def _least_and_greatest(segments_BT: torch.Tensor, block: int) -> torch.Tensor:
    """[2, B, blocks]; the last block is filled up with its last id."""
    missing = -segments_BT.shape[1] % block
    if missing:
        filling = segments_BT[:, -1:].expand(-1, missing)
        segments_BT = torch.cat([segments_BT, filling], dim=1)
    blocks = segments_BT.unflatten(1, (-1, block))
    return torch.stack([blocks.amin(dim=2), blocks.amax(dim=2)])
