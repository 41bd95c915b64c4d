"""bitsandbytes' NF4 format, and its values in JAX.

A weight [O, I] is cut, row by row, into blocks of 64 values that share a scale:

    weight = CODEBOOK[codes] * absmax        float32, then rounded once

and the scales of 256 consecutive blocks, also across rows, share a scale of their own (double quantization):

    absmax = absmax_map[absmax] * absmax_scale + absmax_offset        float32, rounded after either operation

In a parameter tree a dictionary takes the place of the array:

| leaf | dtype and shape | |
| --- | --- | --- |
| codes | uint8 [O, I/2] | two a byte, the first in the high nibble |
| absmax | uint8 [O, I/64] | float32 where a checkpoint's scales are not quantized; then there are no further leaves |
| absmax_scale | float32 [ceil(O * I / 64 / 256)] | |
| absmax_offset | float32 [] | |
| absmax_map | float32 [256] in [-1, 1] | only where a checkpoint's map differs from DYNAMIC_MAP, for example by rounding |

Shapes: O out, I in, N = I / 64 blocks of a row, S scales of scales; a stack of layers has an axis L before these.

Source: Dettmers et al., QLoRA, arXiv 2305.14314; the map: Dettmers et al., arXiv 2110.02861; bitsandbytes 0.50.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lcjax.errors import InputError

BLOCK = 64
ABSMAX_BLOCK = 256

# Quantiles of a normal distribution, scaled to [-1, 1], with an exact zero.
CODEBOOK = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip


def _dynamic_map() -> np.ndarray:
    """256 values in ascending order: a sign, a decimal exponent in unary, and in the bits that remain a linear fraction."""
    values = [np.float32(0.0), np.float32(1.0)]
    for bits in range(7):
        edges = _evenly_spaced(2**bits + 1)
        middles = (edges[:-1] + edges[1:]) / np.float32(2) * np.float32(10.0 ** (bits - 6))
        values += [*middles, *-middles]
    return np.sort(np.array(values))


def _evenly_spaced(count: int) -> np.ndarray:
    """float32 from 0.1 to 1, as torch.linspace rounds: from either end to the middle, each product and sum rounded once."""
    low, high = np.float32(0.1), np.float32(1.0)
    step, steps = np.float64((high - low) / np.float32(count - 1)), np.arange(count)
    up, down = np.float64(low) + step * steps, np.float64(high) - step * steps[::-1]
    return np.where(steps < count // 2, up, down).astype(np.float32)


DYNAMIC_MAP = _dynamic_map()


def leaf_types(out_features: int, in_features: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of each leaf of a double-quantized weight [O, I].

    Raises:
      InputError: in_features is no multiple of 64.
    """
    if in_features % BLOCK:
        raise InputError(
            f"a weight [{out_features}, {in_features}] cannot be quantized: NF4 needs rows of a multiple of {BLOCK} values; "
            "load this model without quantize"
        )
    blocks = out_features * in_features // BLOCK
    return {
        "codes": ((out_features, in_features // 2), np.dtype(np.uint8)),
        "absmax": ((out_features, in_features // BLOCK), np.dtype(np.uint8)),
        "absmax_scale": ((math.ceil(blocks / ABSMAX_BLOCK),), np.dtype(np.float32)),
        "absmax_offset": ((), np.dtype(np.float32)),
    }


def is_quantized(weight: Any) -> bool:
    """Whether a node of a parameter tree is a quantized weight."""
    return isinstance(weight, Mapping) and "codes" in weight


def dequantize(weight: Mapping[str, jax.Array], dtype: jax.typing.DTypeLike) -> jax.Array:
    """The weight [O, I] in `dtype`, exactly as bitsandbytes gives it; one layer's, not a stack.

    No gradient flows into it. XLA makes one GPU kernel of it, whose threads each read two bytes and write four values,
    and another kernel for the scales, a sixty-fourth as large.
    """
    pairs_OC1 = weight["codes"][..., None]
    # A choice by position and not a shift by [4, 0], which every thread would load from memory.
    first_OC2 = lax.broadcasted_iota(jnp.uint8, (*pairs_OC1.shape[:-1], 2), 2) == 0
    codes_OC2 = jnp.where(first_OC2, pairs_OC1 >> 4, pairs_OC1 & 15)
    values_ONB = _look_up(CODEBOOK, codes_OC2).reshape(len(pairs_OC1), -1, BLOCK)
    return (values_ONB * scales(weight)[..., None]).astype(dtype).reshape(len(pairs_OC1), -1)


def scales(weight: Mapping[str, jax.Array]) -> jax.Array:
    """The scales of the blocks, float32 [O, N]."""
    if "absmax_scale" not in weight:
        return weight["absmax"]
    absmax_ON = weight["absmax"]
    scale_ON = jnp.repeat(weight["absmax_scale"], ABSMAX_BLOCK)[: absmax_ON.size].reshape(absmax_ON.shape)
    # The maximum changes nothing, since the map lies in [-1, 1]; it keeps the compiler from fusing multiply and add, rounding once.
    deviation_ON = jnp.maximum(_look_up(weight.get("absmax_map", DYNAMIC_MAP), absmax_ON) * scale_ON, -scale_ON)
    # Behind the barrier the scales are made once, not again for each of their 64 values.
    return lax.optimization_barrier(deviation_ON + weight["absmax_offset"])


def _look_up(table: np.ndarray | jax.Array, codes: jax.Array) -> jax.Array:
    return jnp.asarray(table).at[codes].get(mode="promise_in_bounds")
