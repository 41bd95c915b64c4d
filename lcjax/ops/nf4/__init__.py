"""Weights in four bits: the format, quantising on the host, dequantising on the device."""

from __future__ import annotations

from lcjax.ops.nf4.encoding import quantise as quantise
from lcjax.ops.nf4.format import dequantise as dequantise
from lcjax.ops.nf4.format import is_quantised as is_quantised
from lcjax.ops.nf4.format import leaf_types as leaf_types
from lcjax.ops.nf4.slices import part_of as part_of
