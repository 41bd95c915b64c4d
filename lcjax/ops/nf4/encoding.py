"""Quantization on the host, in numpy, bitwise equal to bitsandbytes on a CPU.

Shapes: O out, I in, N blocks of 64 values, S blocks of 256 scales; see `lcjax.ops.nf4.format`.
"""

from __future__ import annotations

import numpy as np

from lcjax.errors import InputError
from lcjax.ops.nf4.format import ABSMAX_BLOCK, BLOCK, CODEBOOK, DYNAMIC_MAP, leaf_types
from lcjax.ops.nf4.mean import torch_mean

# The midpoints of adjacent codebook values; a value on a boundary gets the lower code.
_BOUNDARIES = (CODEBOOK[:-1] + CODEBOOK[1:]) / np.float32(2)
# Makes the reciprocal of a block of zeros finite; the same constant as in bitsandbytes.
_SMALLEST = np.float32(1e-38)
_STEPS = 2**16
_NEAREST = np.searchsorted((DYNAMIC_MAP[:-1] + DYNAMIC_MAP[1:]) / 2, np.linspace(-1, 1, _STEPS)).astype(np.uint8)
# Blocks per step, so that intermediate results stay in the processor's cache.
_CHUNK = 2048


def quantize(weight_OI: np.ndarray) -> dict[str, np.ndarray]:
    """The leaves of `lcjax.ops.nf4.format` for a weight [O, I] of any float dtype, from float32.

    Raises:
      InputError: I is not a multiple of 64, or a value is not finite.
    """
    codes = np.empty(*leaf_types(*weight_OI.shape)["codes"])
    absmax_ON = quantize_rows(weight_OI, codes)
    return {"codes": codes, **quantize_scales(absmax_ON)}


def quantize_rows(weight_RI: np.ndarray, codes_RC: np.ndarray) -> np.ndarray:
    """Fills in the codes of some rows of a weight, contiguous arrays; returns their scales.

    Returns:
      The largest magnitude of each block, float32 [R, N], for `quantize_scales`.

    Raises:
      InputError: a value is not finite.
    """
    absmax_N = _quantize_blocks(weight_RI.reshape(-1, BLOCK), codes_RC.reshape(-1, BLOCK // 2))
    return absmax_N.reshape(len(weight_RI), -1)


def quantize_scales(absmax_ON: np.ndarray) -> dict[str, np.ndarray]:
    """The leaves other than the codes, from the largest magnitudes of all blocks of a weight."""
    codes_ON, offset = np.empty(absmax_ON.shape, np.uint8), torch_mean(absmax_ON.reshape(-1))
    scale_S = _quantize_absmax(absmax_ON.reshape(-1) - offset, codes_ON.reshape(-1))
    return {"absmax": codes_ON, "absmax_scale": scale_S, "absmax_offset": np.asarray(offset, np.float32)}


def _quantize_blocks(weight_NB: np.ndarray, codes_NC: np.ndarray) -> np.ndarray:
    """Fills in the codes, two per byte; returns each block's largest magnitude, float32 [N]."""
    absmax_N = np.empty(len(weight_NB), np.float32)
    for start in range(0, len(weight_NB), _CHUNK):
        part = slice(start, start + _CHUNK)
        values = weight_NB[part].astype(np.float32, copy=False)
        absmax_N[part] = absmax = np.abs(values).max(axis=1)
        if not np.isfinite(absmax).all():
            raise InputError(
                "a weight holds values that are not finite and cannot be quantized; download the model again"
            )
        scaled = values * (np.float32(1) / np.maximum(absmax, _SMALLEST))[:, None]
        codes = np.zeros(scaled.shape, np.uint8)
        for boundary in _BOUNDARIES:
            codes += scaled > boundary
        codes_NC[part] = codes[:, ::2] << 4 | codes[:, 1::2]
    return absmax_N


def _quantize_absmax(absmax_N: np.ndarray, codes_N: np.ndarray) -> np.ndarray:
    """Fills in the codes of the nearest values of the map.

    Returns the largest magnitude of each block of 256 scales, float32 [S].
    """
    scale_S = np.maximum.reduceat(np.abs(absmax_N), np.arange(0, len(absmax_N), ABSMAX_BLOCK))
    scale_N = np.repeat(scale_S, ABSMAX_BLOCK)[: len(absmax_N)]
    scaled_N = np.clip(absmax_N * (np.float32(1) / np.maximum(scale_N, _SMALLEST)), -1, 1)
    # bitsandbytes first rounds to one of 65,536 steps, so that it can look up the nearest value
    # instead of searching for it.
    half = np.float32(0.5)
    steps_N = ((scaled_N + np.float32(1)) * half * np.float32(_STEPS - 1) + half).astype(np.uint16)
    codes_N[...] = np.where(scale_N > 0, _NEAREST[steps_N], 0)
    return scale_S
