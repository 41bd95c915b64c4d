"""A shape repeated in a batch, so that its largest error is that of many numbers."""

from __future__ import annotations

import dataclasses

from lcjax_scripts.verify.cases.shapes import AttentionShape, Shape

LARGEST_REPEATED = 2**23
"""Elements of a tensor, up to which a shape is repeated."""


def with_rows(shape: Shape, rows: int, largest_heads: int | None = None) -> Shape:
    """An attention shape whose batch is large enough for about `rows` query rows, counted over all heads.

    Other shapes are returned as they are. A batch does not grow beyond `largest_heads` heads, counted over
    all its sequences: an interpreted program takes as long for one row as for sixteen, and every head has
    at least one row.

    The largest error of a few hundred numbers is luck, for the implementation and for the plain version.
    Over many numbers it is a property.
    """
    if not isinstance(shape, AttentionShape):
        return shape
    largest = shape.head_dim * max(shape.tokens * shape.heads, shape.key_count * shape.kv_heads)
    wanted = -(-rows // (shape.tokens * shape.heads))
    batch = min(wanted, LARGEST_REPEATED // largest, largest_heads // shape.heads if largest_heads else wanted)
    return dataclasses.replace(shape, batch=max(shape.batch, batch))
