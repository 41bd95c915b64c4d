"""4-bit floating-point weights with a power of two for every 32 values."""

from __future__ import annotations

from lcjax.ops.mxfp4.format import BLOCK as BLOCK
from lcjax.ops.mxfp4.format import LARGEST_EXPONENT as LARGEST_EXPONENT
from lcjax.ops.mxfp4.format import dequantize as dequantize
from lcjax.ops.mxfp4.format import is_mxfp4 as is_mxfp4
from lcjax.ops.mxfp4.format import leaf_types as leaf_types
