"""Functions that the attention kernels share: loads, products, scores and visibility.

Rows are the tokens of one program, and columns are those that it loops over. In the forward and dq
kernels, rows are queries and columns are keys; in the dk/dv kernel it is the other way round. The
mask by position is a band of diagonals: a row sees the columns with
`lower <= column - row <= upper`. A bound that hides nothing is None.
"""

# Kernel arguments are traced, and constants are unwrapped. Triton's annotations express neither.
# pyright: reportArgumentType=false, reportAssignmentType=false
# pyright: reportCallIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl
from triton import knobs

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Maximum number of float32 terms that are summed sequentially.
LONGEST_SUM = tl.constexpr(32)
INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def dot(x, y, total):
    """Returns `total + x y`, accumulated in float32 without TF32.

    At most LONGEST_SUM terms are summed sequentially.
    """
    PARTS: tl.constexpr = x.shape[1] // LONGEST_SUM
    if x.dtype == tl.float32 and PARTS > 1:
        x_parts = tl.permute(tl.reshape(x, (x.shape[0], PARTS, LONGEST_SUM)), (1, 0, 2))
        product = tl.sum(tl.dot(x_parts, tl.reshape(y, (PARTS, LONGEST_SUM, y.shape[1])), input_precision="ieee"), 0)
        return product if total is None else total + product
    # Sum the float32 products separately from the total. Otherwise the compiler would accumulate
    # into the total through the whole loop of the caller, with a rounding error that grows with the
    # number of iterations. It does not transform a difference.
    if total is not None and x.dtype == tl.float32:
        return total - tl.dot(-x, y, input_precision="ieee")
    # The interpreter multiplies the bits of bfloat16 as integers. Products of bfloat16 are exact in
    # float32, so converting gives the same result as the device.
    if INTERPRETED:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), total, input_precision="ieee")
    return tl.dot(x, y, total, input_precision="ieee")


@triton.jit
def row_products(x, y):
    """Returns the sums of x y over the columns, float32.

    For float32, they are the diagonal of a matrix product. The device then sums in the same order
    as in the other products over head_dim, so that equal sums cancel to exactly 0.
    """
    if x.dtype == tl.float32:
        row = tl.arange(0, x.shape[0])
        return tl.sum(tl.where(row[:, None] == row[None, :], dot(x, y.T, None), 0.0), 1)
    else:
        return tl.sum(x.to(tl.float32) * y.to(tl.float32), 1)


@triton.jit
def load_rows(pointer, first, rows, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, shape, MASKED: tl.constexpr):
    """Loads one head of the tokens from `first` on, [shape].

    The result is zero beyond `rows` (if MASKED) and beyond HEAD_DIM.
    """
    row = tl.arange(0, shape[0])[:, None]
    column = tl.arange(0, shape[1])[None, :]
    # The offset of the first row has 64 bits; offsets within the block have 32.
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
    """Stores what `load_rows` loads, in the dtype of the destination."""
    row = tl.arange(0, x.shape[0])[:, None]
    column = tl.arange(0, x.shape[1])[None, :]
    pointers = pointer + tl.cast(first, tl.int64) * STRIDE + (row * STRIDE + column)
    tl.store(pointers, x.to(pointer.dtype.element_ty), mask=(row < rows - first) & (column < HEAD_DIM))


@triton.jit
def load_tokens(pointer, first, rows, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """Loads one number per token from `first` on, [BLOCK]; zero beyond `rows` (if MASKED)."""
    row = tl.arange(0, BLOCK)
    if MASKED:
        return tl.load(pointer + first + row, mask=row < rows - first, other=0)
    else:
        return tl.load(pointer + first + row)


@triton.jit
def capped(products, score_scale, SOFT_CAP: tl.constexpr):
    """Returns (x, slope): the score in base 2 is `slope * x`, with a positive slope.

    As a separate factor, the slope becomes part of the multiply-add before the exponential.
    """
    if SOFT_CAP is None:
        return products, score_scale * LOG2E
    else:
        return tanh(products * (score_scale / SOFT_CAP)), SOFT_CAP * LOG2E


@triton.jit
def weights_of(scores, slope, base2_lse, factor):
    """Returns the softmax weights from the forward kernel's log-sum-exp and from `factor_of`.

    Both are broadcast to the scores.
    """
    if factor is None:
        return tl.exp2(scores * slope - base2_lse)
    else:
        return precise_exp2(scores * slope - base2_lse) * factor


@triton.jit
def factor_of(totals, numbers, first, rows, BLOCK: tl.constexpr, MASKED: tl.constexpr, AXIS: tl.constexpr):
    """Returns 1 / total, [BLOCK] with a new AXIS; None without totals."""
    factor = None
    if totals is not None:
        total = load_tokens(totals + numbers, first, rows, BLOCK, MASKED)
        factor = tl.expand_dims(tl.div_rn(1.0, tl.where(total > 0, total, 1.0)), AXIS)
    return factor


@triton.jit
def exp2_for(dtype: tl.constexpr, x):
    """Returns 2^x in float32, with an error of two units in the last place, or one for float32."""
    if dtype == tl.float32:
        return precise_exp2(x)
    else:
        return tl.exp2(x)


@triton.jit
def precise_exp2(x):
    """Returns 2^x = 2^n 2^f: the hardware is exact for integers n, and 2^f is a polynomial."""
    # Below -200, the result is 0. The bound excludes -inf, for which f would be nan.
    x = tl.maximum(x, -200.0, propagate_nan=tl.PropagateNan.ALL)
    n = tl.floor(x + 0.5)
    f = x - n
    p = ((1.5461447765e-4 * f + 1.3390866807e-3) * f + 9.6180569381e-3) * f + 5.5503569543e-2
    p = ((p * f + 2.4022650719e-1) * f + 6.9314718246e-1) * f + 1.0
    return p * tl.exp2(n)


@triton.jit
def tanh(x):
    """Returns tanh(x) with an error of 3 units in the 25th bit.

    Below 0.6, a minimax polynomial avoids the cancellation of `1 - 2 / (exp(2 |x|) + 1)`.
    """
    square = x * x
    series = (((-0.005895157649 * square + 0.02079597127) * square - 0.05378383015) * square + 0.1333192413) * square
    near = x + x * (square * (series - 0.33333298002))
    far = 1.0 - 2.0 / (tl.exp2(tl.minimum(tl.abs(x), 10.0) * (2 * LOG2E)) + 1.0)
    return tl.where(tl.abs(x) < 0.6, near, tl.where(x < 0, -far, far))


@triton.jit
def visible_blocks(block, rows, columns, lower, upper, ranges, ROW_BLOCK: tl.constexpr, COLUMN_BLOCK: tl.constexpr):
    """Returns (first, full_first, full_last, last) for a block of rows.

    The column blocks in [first, last) may be visible, and every row sees all columns of those in
    [full_first, full_last). `ranges` points to the same four numbers from the segments, or is None.
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
    """Returns the first column that each row sees by position; rows beyond the end see none."""
    return tl.where(row < rows, row + lower, columns)


@triton.jit
def last_column(row, rows, columns, upper):
    """Returns the last column that each row sees by position. It may be before the first one."""
    last = columns - 1
    if upper is not None:
        last = tl.minimum(row + upper, last)
    return tl.where(row < rows, last, -1)


@triton.jit
def hide(scores, column, first_column, last_column, row_segment, column_segments, columns):
    """Returns the scores [rows, columns] of the block at `column`, with -inf for hidden columns.

    The bounds and `row_segment` have one number per row. `column_segments` is a pointer. Both
    segments may be None.
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
