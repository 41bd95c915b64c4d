"""What the attention kernels share: loads, products, scores, and which blocks and pairs of tokens are visible.

Rows are the tokens of one program, columns those that it loops over: queries and keys in the forward and dq
kernels, keys and queries in the dk/dv kernel. Positions form a band of diagonals: a row sees the columns with
`lower <= column - row <= upper`, where a bound that hides nothing is None.
"""

# Kernel arguments are traced, and constants arrive unwrapped: Triton's annotations express neither.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportOperatorIssue=false

import triton
import triton.language as tl
from triton import knobs

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Terms of float32 that are added up in one chain.
LONGEST_SUM = tl.constexpr(32)
INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def dot(x, y, total):
    """`total + x y`, accumulated in float32; no TF32, and at most LONGEST_SUM terms in a chain."""
    PARTS: tl.constexpr = x.shape[1] // LONGEST_SUM
    if x.dtype == tl.float32 and PARTS > 1:
        x_parts = tl.permute(tl.reshape(x, (x.shape[0], PARTS, LONGEST_SUM)), (1, 0, 2))
        product = tl.sum(tl.dot(x_parts, tl.reshape(y, (PARTS, LONGEST_SUM, y.shape[1])), input_precision="ieee"), 0)
        return product if total is None else total + product
    # float32 products are summed separately. The compiler would chain them with the total through
    # the whole loop of the caller, with a rounding error that grows with its length. It leaves a
    # difference alone.
    if total is not None and x.dtype == tl.float32:
        return total - tl.dot(-x, y, input_precision="ieee")
    # The interpreter multiplies the bits of bfloat16. Products of bfloat16 are exact in float32, so
    # this is the same arithmetic.
    if INTERPRETED:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), total, input_precision="ieee")
    return tl.dot(x, y, total, input_precision="ieee")


@triton.jit
def row_products(x, y):
    """The sums of x y over the columns, float32.

    For float32 they are the diagonal of a product, which the device adds up in the same order as any other
    product over head_dim. Equal sums then cancel to exactly 0.
    """
    if x.dtype == tl.float32:
        row = tl.arange(0, x.shape[0])
        return tl.sum(tl.where(row[:, None] == row[None, :], dot(x, y.T, None), 0.0), 1)
    else:
        return tl.sum(x.to(tl.float32) * y.to(tl.float32), 1)


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
def weights_of(scores, slope, base2_lse, factor):
    """The softmax, from the forward kernel's log-sum-exp and from `factor_of`, broadcast to the scores."""
    if factor is None:
        return tl.exp2(scores * slope - base2_lse)
    else:
        return precise_exp2(scores * slope - base2_lse) * factor


@triton.jit
def factor_of(totals, numbers, first, rows, BLOCK: tl.constexpr, MASKED: tl.constexpr, AXIS: tl.constexpr):
    """The factor of the weights relative to the largest, [BLOCK] and a new AXIS; None without totals."""
    factor = None
    if totals is not None:
        total = load_tokens(totals + numbers, first, rows, BLOCK, MASKED)
        factor = tl.expand_dims(tl.div_rn(1.0, tl.where(total > 0, total, 1.0)), AXIS)
    return factor


@triton.jit
def exp2_for(dtype: tl.constexpr, x):
    """2^x, float32: the hardware's, to two units in the last place, or for float32 inputs to one unit."""
    if dtype == tl.float32:
        return precise_exp2(x)
    else:
        return tl.exp2(x)


@triton.jit
def precise_exp2(x):
    """2^x = 2^n 2^f: the hardware is exact for whole n, and a polynomial is accurate for |f| <= 1/2."""
    # Below -200 it is 0 anyway, and -inf has no f.
    x = tl.maximum(x, -200.0, propagate_nan=tl.PropagateNan.ALL)
    n = tl.floor(x + 0.5)
    f = x - n
    p = ((1.5461447765e-4 * f + 1.3390866807e-3) * f + 9.6180569381e-3) * f + 5.5503569543e-2
    p = ((p * f + 2.4022650719e-1) * f + 6.9314718246e-1) * f + 1.0
    return p * tl.exp2(n)


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
