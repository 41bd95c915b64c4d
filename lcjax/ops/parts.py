"""Equal parts of an array along an axis."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def part_of(x: jax.Array, part: jax.Array, parts: int, axis: int, sections: Sequence[int] | None = None) -> jax.Array:
    """One of `parts` equal parts along an axis.

    With `sections`, the sizes of sections that make up the axis, it is that part of every section,
    one after another. Every size is a multiple of `parts`.
    """
    pieces, start = [], 0
    for size in sections or (x.shape[axis],):
        offset = part * (size // parts)
        pieces.append(lax.dynamic_slice_in_dim(x, start + offset if start else offset, size // parts, axis))
        start += size
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis)
