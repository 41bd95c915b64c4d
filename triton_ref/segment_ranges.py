"""Finds which column blocks a row block sees by segment ids, in O(T) memory.

Each block is described by its least and greatest id. Two blocks may share an id if these ranges
overlap, and they are one segment if all four numbers are equal. The result is exact for ascending
ids. For others, it may include blocks that are not visible.
"""

# Kernel arguments are traced, and constants are unwrapped. Triton's annotations express neither.
# pyright: reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

COLUMNS_A_STEP = 1024


@triton.jit
def _ranges_kernel(rows, columns, ranges, row_blocks, column_blocks, STEP: tl.constexpr):
    """Computes ranges [B, row blocks, 4].

    rows [2, B, row blocks] and columns [2, B, column blocks] are the least and greatest ids.
    """
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
    # If the full blocks are not contiguous, which happens only for ids out of order, the masked
    # loop handles all blocks.
    full_last = tl.where(full_last - full_first == full_count, full_last, full_first)
    ranges += row.to(tl.int64) * 4
    tl.store(ranges, first)
    tl.store(ranges + 1, full_first)
    tl.store(ranges + 2, full_last)
    tl.store(ranges + 3, last)


def segment_ranges(rows_BT: torch.Tensor, columns_BS: torch.Tensor, row_block: int, column_block: int) -> torch.Tensor:
    """Returns int32 [B, blocks, 4]: first, full_first, full_last, last (see `visible_blocks`)."""
    rows, columns = _least_and_greatest(rows_BT, row_block), _least_and_greatest(columns_BS, column_block)
    ranges = torch.empty((*rows.shape[1:], 4), dtype=torch.int32, device=rows.device)
    grid = (rows[0].numel(),)
    _ranges_kernel[grid](rows, columns, ranges, rows.shape[2], columns.shape[2], STEP=COLUMNS_A_STEP)
    return ranges


def _least_and_greatest(segments_BT: torch.Tensor, block: int) -> torch.Tensor:
    """Returns the least and greatest ids [2, B, blocks], with the last block padded."""
    missing = -segments_BT.shape[1] % block
    if missing:
        filling = segments_BT[:, -1:].expand(-1, missing)
        segments_BT = torch.cat([segments_BT, filling], dim=1)
    blocks = segments_BT.unflatten(1, (-1, block))
    return torch.stack([blocks.amin(dim=2), blocks.amax(dim=2)])
