"""4-bit weights: the format, quantization on the host, dequantization on the device."""

from __future__ import annotations

from lcjax.ops.nf4.encoding import quantize as quantize
from lcjax.ops.nf4.encoding import quantize_rows as quantize_rows
from lcjax.ops.nf4.encoding import quantize_scales as quantize_scales
from lcjax.ops.nf4.format import BLOCK as BLOCK
from lcjax.ops.nf4.format import dequantize as dequantize
from lcjax.ops.nf4.format import dequantize_stack as dequantize_stack
from lcjax.ops.nf4.format import is_quantized as is_quantized
from lcjax.ops.nf4.format import leaf_types as leaf_types
from lcjax.ops.nf4.slices import part_of as part_of
