"""Repeats a shape in a batch, so that its largest error is taken over many numbers."""

from __future__ import annotations

import dataclasses

from lcjax_scripts.verify.cases.shapes import AttentionShape, Shape

LARGEST_REPEATED = 2**23
"""A shape is repeated up to this many elements per tensor."""


def with_rows(shape: Shape, rows: int, largest_heads: int | None = None) -> Shape:
    """Returns an attention shape with a batch large enough for about `rows` query rows.

    Rows are counted over all heads. The largest error of a few hundred numbers is a matter of
    chance, both for the implementation and for the plain version; over many numbers it is not.

    The batch has at most `largest_heads` heads in total, because the interpreter takes as long for
    one row of a head as for sixteen. Shapes of other operations are returned unchanged.
    """
    if not isinstance(shape, AttentionShape):
        return shape
    largest = shape.head_dim * max(shape.tokens * shape.heads, shape.key_count * shape.kv_heads)
    wanted = -(-rows // (shape.tokens * shape.heads))
    batch = min(wanted, LARGEST_REPEATED // largest, largest_heads // shape.heads if largest_heads else wanted)
    return dataclasses.replace(shape, batch=max(shape.batch, batch))
