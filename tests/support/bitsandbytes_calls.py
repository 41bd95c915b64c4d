"""Calls bitsandbytes on the CPU, with numpy arrays and the names of `lcjax.ops.nf4.format`."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import numpy as np
import torch
from bitsandbytes.functional import QuantState


def quantize(weight: torch.Tensor, *, double: bool = True) -> tuple[torch.Tensor, QuantState]:
    # With several threads, torch splits the sum of the scales, so rounding would depend on the
    # machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    finally:
        torch.set_num_threads(threads)


def leaves(codes: torch.Tensor, state: QuantState) -> dict[str, np.ndarray]:
    """Returns codes and scales with the shapes of a parameter tree."""
    out_features, in_features = state.shape
    found = {"codes": codes.reshape(out_features, in_features // 2), "absmax": state.absmax.reshape(out_features, -1)}
    if state.nested:
        found |= {"absmax_scale": state.state2.absmax, "absmax_offset": state.offset}
    return {name: leaf.numpy() for name, leaf in found.items()}


def values(codes: torch.Tensor, state: QuantState, dtype: torch.dtype) -> torch.Tensor:
    """Returns the weight [O, I] in another dtype than that of the original."""
    state.dtype = dtype
    return bnb.dequantize_4bit(codes, state)
