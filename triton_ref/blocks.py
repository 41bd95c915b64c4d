"""What the attention kernels share: loads, products, scores, and which blocks and pairs of tokens are visible.

Rows are the tokens that one program keeps, columns those that it runs over: queries and keys in the forward and dq kernels,
keys and queries in the dk/dv kernel. Position decides by a band of diagonals: a row sees the columns with
`lower <= column - row <= upper`, where a bound that hides nothing is None.
"""

# What a kernel is given is traced, and constants arrive unwrapped: Triton's annotations say neither.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl
from triton import knobs

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def dot(x, y, total):
    """`total + x y`, accumulated in float32, products of float32 in full (no TF32)."""
    # The interpreter multiplies the bits of bfloat16. Its products are exact in float32, so this is the same arithmetic.
    if INTERPRETED:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), total, input_precision="ieee")
    return tl.dot(x, y, total, input_precision="ieee")


@triton.jit
def load_rows(pointer, first, rows, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, shape, MASKED: tl.constexpr):
    """One head of the tokens from `first` on, [shape], zero beyond `rows` (if MASKED) and beyond HEAD_DIM."""
    row = tl.arange(0, shape[0])[:, None]
    column = tl.arange(0, shape[1])[None, :]
    # 64 bits to the first row, 32 within the block.
    pointers = pointer + tl.cast(first, tl.int64) * STRIDE + (row * STRIDE + column)
    if shape[1] > HEAD_DIM:
        mask = column < HEAD_DIM
        if MASKED:
            mask = mask & (row < rows - first)
        return tl.load(pointers, mask=mask, other=0.0)
    elif MASKED:
        return tl.load(pointers, mask=row < rows - first, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def store_rows(pointer, first, rows, x, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """The inverse of `load_rows`, in the dtype of the destination."""
    row = tl.arange(0, x.shape[0])[:, None]
    column = tl.arange(0, x.shape[1])[None, :]
    pointers = pointer + tl.cast(first, tl.int64) * STRIDE + (row * STRIDE + column)
    tl.store(pointers, x.to(pointer.dtype.element_ty), mask=(row < rows - first) & (column < HEAD_DIM))


@triton.jit
def load_tokens(pointer, first, rows, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """One number a token from `first` on, [BLOCK], zero beyond `rows` (if MASKED)."""
    row = tl.arange(0, BLOCK)
    if MASKED:
        return tl.load(pointer + first + row, mask=row < rows - first, other=0)
    else:
        return tl.load(pointer + first + row)


@triton.jit
def capped(products, score_scale, SOFT_CAP: tl.constexpr):
    """(x, slope) where the score in base 2 is `slope * x`, with slope positive.

    Left as a factor, the slope becomes part of the multiply-add before the exponential.
    """
    if SOFT_CAP is None:
        return products, score_scale * LOG2E
    else:
        return tanh(products * (score_scale / SOFT_CAP)), SOFT_CAP * LOG2E


@triton.jit
def weights_of(scores, slope, base2_lse, log_total):
    """The softmax from what the forward kernel left of its log-sum-exp, broadcast to the scores; `log_total` may be None."""
    exponents = scores * slope - base2_lse
    if log_total is not None:
        exponents -= log_total
    return tl.exp2(exponents)


@triton.jit
def tanh(x):
    """To 3 units in the 25th bit: a polynomial (minimax below 0.6) where `1 - 2 / (exp(2 |x|) + 1)` would cancel."""
    square = x * x
    series = (((-0.005895157649 * square + 0.02079597127) * square - 0.05378383015) * square + 0.1333192413) * square
    near = x + x * (square * (series - 0.33333298002))
    far = 1.0 - 2.0 / (tl.exp2(tl.minimum(tl.abs(x), 10.0) * (2 * LOG2E)) + 1.0)
    return tl.where(tl.abs(x) < 0.6, near, tl.where(x < 0, -far, far))


@triton.jit
def visible_blocks(block, rows, columns, lower, upper, ranges, ROW_BLOCK: tl.constexpr, COLUMN_BLOCK: tl.constexpr):
    """(first, full_first, full_last, last): blocks [first, last) of columns may be visible to a block of rows, and those
    in [full_first, full_last) are seen whole by every row. `ranges` points to the block's own from its segments, or None.
    """
    row = block * ROW_BLOCK
    last_row = tl.minimum(row + ROW_BLOCK, rows) - 1
    first, last = 0 * row, tl.cdiv(columns, COLUMN_BLOCK)
    full_first, full_last = 0 * row, columns // COLUMN_BLOCK
    if lower is not None:
        first = tl.maximum(row + lower, 0) // COLUMN_BLOCK
        full_first = tl.cdiv(tl.maximum(last_row + lower, 0), COLUMN_BLOCK)
    if upper is not None:
        last = tl.cdiv(tl.minimum(tl.maximum(last_row + upper + 1, 0), columns), COLUMN_BLOCK)
        full_last = tl.minimum(tl.maximum(row + upper + 1, 0), columns) // COLUMN_BLOCK
    if ranges is not None:
        first = tl.maximum(first, tl.load(ranges))
        full_first = tl.maximum(full_first, tl.load(ranges + 1))
        full_last = tl.minimum(full_last, tl.load(ranges + 2))
        last = tl.minimum(last, tl.load(ranges + 3))
    last = tl.maximum(first, last)
    full_first = tl.minimum(tl.maximum(full_first, first), last)
    full_last = tl.minimum(tl.maximum(full_last, full_first), last)
    return first, full_first, full_last, last


@triton.jit
def first_column(row, rows, columns, lower):
    """The first column that each row sees by its position; rows beyond the end see none."""
    return tl.where(row < rows, row + lower, columns)


@triton.jit
def last_column(row, rows, columns, upper):
    """The last column that each row sees by its position, which may be before the first; `upper` may be None."""
    last = columns - 1
    if upper is not None:
        last = tl.minimum(row + upper, last)
    return tl.where(row < rows, last, -1)


@triton.jit
def hide(scores, column, first_column, last_column, row_segment, column_segments, columns):
    """The scores [rows, columns] of the block of columns from `column` on, -inf where a row does not see a column.

    The arguments are of one number a row, but for the pointer `column_segments`; segments may be None.
    """
    indices = tl.arange(0, scores.shape[1])[None, :]
    mask = True
    if first_column is not None:
        mask = indices >= (first_column - column)[:, None]
    if last_column is not None:
        mask = mask & (indices <= (last_column - column)[:, None])
    if row_segment is not None:
        column_segment = load_tokens(column_segments, column, columns, scores.shape[1], True)
        mask = mask & (row_segment[:, None] == column_segment[None, :])
    return tl.where(mask, scores, float("-inf"))
