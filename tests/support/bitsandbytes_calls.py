"""bitsandbytes on the CPU, in numpy arrays and under the names of `lcjax.ops.nf4.format`."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import numpy as np
import torch
from bitsandbytes.functional import QuantState


def quantize(weight: torch.Tensor, *, double: bool = True) -> tuple[torch.Tensor, QuantState]:
    # On more threads torch splits the sum of many scales by threads, and so rounds it otherwise on another machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    finally:
        torch.set_num_threads(threads)


def leaves(codes: torch.Tensor, state: QuantState) -> dict[str, np.ndarray]:
    """Codes and scales in the shapes that they have in a parameter tree."""
    out_features, in_features = state.shape
    found = {"codes": codes.reshape(out_features, in_features // 2), "absmax": state.absmax.reshape(out_features, -1)}
    if state.nested:
        found |= {"absmax_scale": state.state2.absmax, "absmax_offset": state.offset}
    return {name: leaf.numpy() for name, leaf in found.items()}


def values(codes: torch.Tensor, state: QuantState, dtype: torch.dtype) -> torch.Tensor:
    """The weight [O, I] in another dtype than it was quantized from."""
    state.dtype = dtype
    return bnb.dequantize_4bit(codes, state)
