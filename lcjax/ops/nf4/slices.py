"""Parts of a quantized weight, without dequantizing it.

Shapes: O out, I in, N = I / 64 blocks per row.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
from jax import lax

from lcjax.errors import InputError
from lcjax.ops.nf4.format import BLOCK, scales


def part_of(weight: Mapping[str, jax.Array], part: jax.Array, parts: int, axis: int) -> dict[str, jax.Array]:
    """One of `parts` equal parts of the rows (axis 0) or of the columns (axis 1).

    The scales of its blocks are float32.

    Raises:
      InputError: the columns cannot be cut at boundaries of blocks.
    """
    codes, absmax = weight["codes"], scales(weight)
    if absmax.shape[axis] % parts:
        raise InputError(
            f"NF4 weights of {2 * codes.shape[1]} columns in blocks of {BLOCK} cannot be cut "
            f"into {parts} parts; use fewer head_groups"
        )

    def cut(x: jax.Array) -> jax.Array:
        size = x.shape[axis] // parts
        return lax.dynamic_slice_in_dim(x, part * size, size, axis)

    return {"codes": cut(codes), "absmax": cut(absmax)}
