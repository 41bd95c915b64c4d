"""The NF4 format of bitsandbytes, and dequantization in JAX.

A weight [O, I] is cut, row by row, into blocks of 64 values that share a scale:

    weight = CODEBOOK[codes] * absmax        float32, then rounded once

The scales of 256 consecutive blocks, also across rows, share a scale of their own (double
quantization):

    absmax = absmax_map[absmax] * absmax_scale + absmax_offset    float32, rounded after each
    operation

In a parameter tree a dictionary with these leaves replaces the array:

| leaf | dtype and shape | |
| --- | --- | --- |
| codes | uint8 [O, I/2] | two per byte, the first in the high nibble |
| absmax | uint8 [O, I/64] | float32 if the scales are not quantized; then no leaves follow |
| absmax_scale | float32 [ceil(O * I / 64 / 256)] | |
| absmax_offset | float32 [] | |
| absmax_map | float32 [256] in [-1, 1] | only if a checkpoint's map is not equal to DYNAMIC_MAP |

A checkpoint's map can differ from DYNAMIC_MAP by rounding, for example.

Shapes: O out, I in, N = I / 64 blocks per row, S scales of scales. A stack of layers has an axis L
before these.

Source: Dettmers et al., QLoRA, arXiv 2305.14314; the map: Dettmers et al., arXiv 2110.02861;
bitsandbytes 0.50.
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
    """256 values in ascending order.

    Each consists of a sign, a decimal exponent in unary, and a linear fraction in the remaining
    bits.
    """
    values = [np.float32(0.0), np.float32(1.0)]
    for bits in range(7):
        edges = _evenly_spaced(2**bits + 1)
        middles = (edges[:-1] + edges[1:]) / np.float32(2) * np.float32(10.0 ** (bits - 6))
        values += [*middles, *-middles]
    return np.sort(np.array(values))


def _evenly_spaced(count: int) -> np.ndarray:
    """float32 values from 0.1 to 1, rounded like torch.linspace.

    It computes from either end to the middle, with one rounding per product and sum.
    """
    low, high = np.float32(0.1), np.float32(1.0)
    step, steps = np.float64((high - low) / np.float32(count - 1)), np.arange(count)
    up, down = np.float64(low) + step * steps, np.float64(high) - step * steps[::-1]
    return np.where(steps < count // 2, up, down).astype(np.float32)


DYNAMIC_MAP = _dynamic_map()


def leaf_types(out_features: int, in_features: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of each leaf of a double-quantized weight [O, I].

    Raises:
      InputError: in_features is not a multiple of 64.
    """
    if in_features % BLOCK:
        raise InputError(
            f"a weight [{out_features}, {in_features}] cannot be quantized: NF4 needs rows of a "
            f"multiple of {BLOCK} values; leave it unquantized"
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
    """The weight [O, I] of one layer in `dtype`, bitwise equal to bitsandbytes; not for a stack.

    No gradient flows into it. XLA compiles it to one GPU kernel, in which each thread reads two
    bytes and writes four values, and another kernel for the scales, with a sixty-fourth of the
    values.
    """
    pairs_OC1 = weight["codes"][..., None]
    # Select by position. Every thread would have to load the shifts [4, 0] from memory.
    first_OC2 = lax.broadcasted_iota(jnp.uint8, (*pairs_OC1.shape[:-1], 2), 2) == 0
    codes_OC2 = jnp.where(first_OC2, pairs_OC1 >> 4, pairs_OC1 & 15)
    values_ONB = _look_up(CODEBOOK, codes_OC2).reshape(len(pairs_OC1), -1, BLOCK)
    return (values_ONB * scales(weight)[..., None]).astype(dtype).reshape(len(pairs_OC1), -1)


def dequantize_stack(weight: Mapping[str, jax.Array], dtype: jax.typing.DTypeLike) -> jax.Array:
    """The weights [E, O, I] of a stack, as `dequantize` of each.

    A mask of positions over a whole stack would be an array in memory, which XLA computes once
    before a loop. So both values of a byte are computed, and joined.
    """
    codes_EOC = weight["codes"]
    scales_EON1 = jax.vmap(scales)(weight)[..., None]
    blocks = (*scales_EON1.shape[:-1], BLOCK // 2)
    halves = (_look_up(CODEBOOK, codes.reshape(blocks)) * scales_EON1 for codes in (codes_EOC >> 4, codes_EOC & 15))
    return jnp.stack([half.astype(dtype) for half in halves], axis=-1).reshape(*codes_EOC.shape[:2], -1)


def scales(weight: Mapping[str, jax.Array]) -> jax.Array:
    """The scales of the blocks, float32 [O, N]."""
    if "absmax_scale" not in weight:
        return weight["absmax"]
    absmax_ON = weight["absmax"]
    scale_ON = jnp.repeat(weight["absmax_scale"], ABSMAX_BLOCK)[: absmax_ON.size].reshape(absmax_ON.shape)
    # The maximum changes no value, since the map lies in [-1, 1]. It prevents the compiler from
    # fusing multiply and add, which would round only once.
    deviation_ON = jnp.maximum(_look_up(weight.get("absmax_map", DYNAMIC_MAP), absmax_ON) * scale_ON, -scale_ON)
    # The barrier makes XLA compute each scale once, and not again for each of its 64 values.
    return lax.optimization_barrier(deviation_ON + weight["absmax_offset"])


def _look_up(table: np.ndarray | jax.Array, codes: jax.Array) -> jax.Array:
    return jnp.asarray(table).at[codes].get(mode="promise_in_bounds")
