"""Parts of a quantized weight, without dequantizing it.

Shapes: O out, I in, N = I / 64 blocks per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax

from lcjax.errors import InputError
from lcjax.ops.nf4.format import BLOCK, scales
from lcjax.ops.parts import part_of as part_of_array


def part_of(
    weight: Mapping[str, jax.Array], part: jax.Array, parts: int, axis: int, sections: Sequence[int] | None = None
) -> dict[str, jax.Array]:
    """One of `parts` equal parts of the rows (axis 0) or of the columns (axis 1).

    The scales of its blocks are float32. `sections` of the rows are as in `lcjax.ops.parts`.

    Raises:
      InputError: the columns cannot be cut at boundaries of blocks.
    """
    codes, absmax = weight["codes"], scales(weight)
    if absmax.shape[axis] % parts:
        raise InputError(
            f"NF4 weights of {2 * codes.shape[1]} columns in blocks of {BLOCK} cannot be cut "
            f"into {parts} parts; use fewer head_groups"
        )
    return {name: part_of_array(x, part, parts, axis, sections) for name, x in (("codes", codes), ("absmax", absmax))}
