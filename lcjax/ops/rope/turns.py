"""Cosines and sines of `position * frequency` at every int32 position, without float64.

A float32 product is wrong by up to 0.03 radians at position 1,000,000, and by whole turns at 2^31.
But whole turns do not change a cosine. A frequency f in radians per token therefore becomes a
fraction of a turn with 64 bits, F, and integer multiplication, which wraps around, removes whole
turns:

    F = floor(2^64 f / (2 pi)) mod 2^64,    turns = (position * F mod 2^64) / 2^64.

The first 32 bits of the product are enough. The error of F is at most `position * 2^-64` turns, and
that of the product 2^-32 turns, together less than 2^-28 radians. The fraction is reduced to an
eighth of a turn on either side as an integer. Then it becomes float32, and the polynomials and
their rounding raise the error of a cosine or sine to less than 2^-23.

The float32 frequencies themselves are taken as exact. Shapes: F rotated pairs.
Source: the reduction of large arguments by Payne and Hanek (SIGNUM Newsletter 18, 1983).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

INVERSE_OF_2_PI = 0x28BE60DB9391054A7F09D5F47D4D377036D8A5664F10E4107F9458EAF7AEF158
"""2^256 / (2 pi), rounded down."""

# In units of 2^-32 turns.
QUARTER = 1 << 30
EIGHTH = 1 << 29
RADIANS = math.pi / 2**31
# sin x = x + x^3 p(x^2) and cos x = p(x^2), |x| <= pi / 4; Cephes' sinf and cosf, the highest power
# first.
SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2, -0.5, 1.0)


def _turns_of_powers_of_two() -> np.ndarray:
    """2^96 times the fraction of `2^(e - 150) / (2 pi)` in three words, uint32 [3, 256].

    A float32 number with the biased exponent e is an integer times 2^(e - 150).
    """
    fractions = [(INVERSE_OF_2_PI << max(e, 1)) >> (150 + 256 - 96) for e in range(256)]
    return np.array([[n >> shift & 0xFFFFFFFF for n in fractions] for shift in (64, 32, 0)], np.uint32)


def turns_per_token(inverse_frequencies_F: jax.Array) -> jax.Array:
    """The frequencies as 64-bit fractions of a turn: `2^32 high + low`, int32 [2, F] (high, low).

    Args:
      inverse_frequencies_F: float32, radians per token, of any size and sign; may be traced. The
        result differs from the exact value by less than 1.01 * 2^-64 turns.
    """
    bits = lax.bitcast_convert_type(inverse_frequencies_F.astype(jnp.float32), jnp.uint32)
    exponents = (bits >> 23) & jnp.uint32(0xFF)
    integers = (bits & jnp.uint32(0x7FFFFF)) | jnp.where(exponents > 0, jnp.uint32(1 << 23), jnp.uint32(0))
    # The middle 64 bits of the product of an integer and three words.
    top, middle, bottom = jnp.asarray(_turns_of_powers_of_two())[:, exponents.astype(jnp.int32)]
    carried = _multiply_high(integers, bottom)
    low = integers * middle + carried
    high = integers * top + _multiply_high(integers, middle) + (low < carried).astype(jnp.uint32)
    negative = bits >> 31 > 0
    high = jnp.where(negative, ~high + (low == 0).astype(jnp.uint32), high)
    low = jnp.where(negative, -low, low)
    # The lower word becomes signed, like positions.
    return lax.bitcast_convert_type(jnp.stack([high + (low >> 31), low]), jnp.int32)


def cos_and_sin(positions: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) of the angles of positions, float32, within 2^-23 of their exact values.

    Also runs inside kernels. Largest safe size: all int32 positions.

    Args:
      positions: int32, in tokens.
      high, low: int32, the words of `turns_per_token`, of a shape that broadcasts.
    """
    turns = positions * high + _multiply_high(positions, low)
    # The nearest quarter turn is in the first two bits, and the distance from it in the others.
    quarters = turns + jnp.int32(EIGHTH)
    distances = (quarters & jnp.int32(QUARTER - 1)) - jnp.int32(EIGHTH)
    x = distances.astype(jnp.float32) * jnp.float32(RADIANS)
    square = x * x
    sine, cosine = x + x * square * _polynomial(SINE, square), _polynomial(COSINE, square)
    odd = (quarters & jnp.int32(QUARTER)) != 0
    cos, sin = jnp.where(odd, sine, cosine), jnp.where(odd, cosine, sine)
    return jnp.where(quarters + jnp.int32(QUARTER) < 0, -cos, cos), jnp.where(quarters < 0, -sin, sin)


def _polynomial(coefficients: Sequence[float], x: jax.Array) -> jax.Array:
    value = jnp.float32(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + jnp.float32(coefficient)
    return jnp.asarray(value)


def _multiply_high(x: jax.Array, y: jax.Array) -> jax.Array:
    """The upper 32 bits of the product of two int32 or of two uint32, in steps of 16 bits.

    Source: Warren, Hacker's Delight, section 8-2.
    """
    sixteen, mask = jnp.array(16, x.dtype), jnp.array(0xFFFF, x.dtype)
    x_high, x_low, y_high, y_low = x >> sixteen, x & mask, y >> sixteen, y & mask
    middle = x_high * y_low + lax.shift_right_logical(*jnp.broadcast_arrays(x_low * y_low, sixteen))
    return x_high * y_high + (middle >> sixteen) + ((x_low * y_high + (middle & mask)) >> sixteen)
