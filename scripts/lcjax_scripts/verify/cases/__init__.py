"""Shapes for tests, benchmarks and the parity harness. They are difficult on purpose.

Lengths include multiples of the kernels' block sizes, lengths that differ from them by one, and
others. The GQA ratios are 1, 3, 4 and 8.
"""

from lcjax_scripts.verify.cases.covering import covering
from lcjax_scripts.verify.cases.matrix import (
    DTYPES,
    GQA_RATIOS,
    HEAD_DIMS,
    LENGTHS,
    MASKS,
    default_matrix,
    full_matrix,
    long_matrix,
)
from lcjax_scripts.verify.cases.named import ATTENTION, ATTENTION_FEATURES
from lcjax_scripts.verify.cases.repeated import with_rows
from lcjax_scripts.verify.cases.shapes import (
    POSITIONS,
    AttentionShape,
    LongShape,
    ModelShape,
    RopeShape,
    Shape,
    Shapes,
)

__all__ = [
    "ATTENTION",
    "ATTENTION_FEATURES",
    "DTYPES",
    "GQA_RATIOS",
    "HEAD_DIMS",
    "LENGTHS",
    "MASKS",
    "POSITIONS",
    "AttentionShape",
    "LongShape",
    "ModelShape",
    "RopeShape",
    "Shape",
    "Shapes",
    "covering",
    "default_matrix",
    "full_matrix",
    "long_matrix",
    "with_rows",
]
