"""The MXFP4 format, and dequantization in JAX.

Each row of a weight [O, I] is cut into blocks of 32 values that share a power of two:

    weight = VALUES[code] * 2^(exponent - 127)

bfloat16 and float32 represent every such value exactly if it is not denormal. In a parameter tree a
dictionary with these leaves replaces the array:

| leaf | dtype and shape | |
| --- | --- | --- |
| blocks | uint8 [O, I/2] | two codes per byte, the first in the low nibble |
| exponents | uint8 [O, I/32] | |

Shapes: O out, I in. Stacks of layers and experts have axes L and E before these.

Source: Open Compute Project, OCP Microscaling Formats (MX) Specification 1.0, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lcjax.errors import InputError

BLOCK = 32

LARGEST_EXPONENT = 252
"""With which all values are finite in float32 and bfloat16; in the specification 255 is NaN."""

VALUES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
"""Of the codes 0 to 7; codes 8 to 15 have the same values with a minus sign."""

_EXPONENT_BIAS, _FLOAT32_BITS = 127, 23


def leaf_types(out_features: int, in_features: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of each leaf of a weight [O, I].

    Raises:
      InputError: in_features is not a multiple of 32.
    """
    if in_features % BLOCK:
        raise InputError(
            f"a weight [{out_features}, {in_features}] in MXFP4 needs rows of a multiple of {BLOCK} values"
        )
    byte = np.dtype(np.uint8)
    return {
        "blocks": ((out_features, in_features // 2), byte),
        "exponents": ((out_features, in_features // BLOCK), byte),
    }


def is_mxfp4(weight: Any) -> bool:
    """Whether a node of a parameter tree is a weight in MXFP4."""
    return isinstance(weight, Mapping) and "exponents" in weight


def dequantize(weight: Mapping[str, jax.Array], dtype: jax.typing.DTypeLike) -> jax.Array:
    """The weight [..., O, I] in `dtype`. No gradient flows into it."""
    blocks, powers = weight["blocks"], _powers(weight["exponents"])[..., None]
    pairs = blocks.reshape(*blocks.shape[:-1], -1, BLOCK // 2)
    first, second = ((_values(codes) * powers).astype(dtype) for codes in (pairs & 15, pairs >> 4))
    return jnp.stack([first, second], axis=-1).reshape(*blocks.shape[:-1], -1)


def _values(codes: jax.Array) -> jax.Array:
    """The values of codes, float32: a sign, two bits of an exponent and one of a fraction.

    Computed from the bits: a table would cost a load from memory for each value.
    """
    bits = codes.astype(jnp.int32)
    exponent, fraction = (bits >> 1) & 3, bits & 1
    normal = lax.bitcast_convert_type(
        ((exponent + _EXPONENT_BIAS - 1) << _FLOAT32_BITS) | (fraction << (_FLOAT32_BITS - 1)), jnp.float32
    )
    magnitude = jnp.where(exponent == 0, 0.5 * fraction.astype(jnp.float32), normal)
    return jnp.where(bits >= 8, -magnitude, magnitude)


def _powers(exponents: jax.Array) -> jax.Array:
    """2^(exponent - 127), float32. The exponent 0 gives 2^-127, which is denormal."""
    bits = exponents.astype(jnp.int32) << _FLOAT32_BITS
    return lax.bitcast_convert_type(jnp.where(exponents == 0, 1 << (_FLOAT32_BITS - 1), bits), jnp.float32)
