"""Weights in four bits: the format, quantising on the host, dequantising on the device."""

from __future__ import annotations

from lcjax.errors import InputError
from lcjax.quant.encoding import quantise as quantise
from lcjax.quant.nf4 import dequantise as dequantise
from lcjax.quant.nf4 import is_quantised as is_quantised
from lcjax.quant.nf4 import leaf_types as leaf_types
from lcjax.quant.slices import part_of as part_of

KINDS = ("nf4",)


def check_kind(quantize: str | None) -> None:
    """Raises InputError where that is no kind of quantisation; None is none."""
    if quantize is not None and quantize not in KINDS:
        raise InputError(f"quantize={quantize!r} is not supported; use {', '.join(KINDS)}, or leave it out")
