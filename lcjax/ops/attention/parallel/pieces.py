"""The mask between tokens of which every device has some pieces of the sequence.

Shapes: P pieces of a device, one or two.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from lcjax.ops.attention.masks import Blocks, Bounds, Mask


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Pieces(Mask):
    """Causal attention, with an optional window, by positions in the whole sequence.

    Attributes:
      query_starts, key_starts: int32 [P], the positions where the pieces start, in ascending order.
        So positions ascend along the device's tokens, and the visible blocks of every block are
        adjacent.
      query_piece, key_piece: the tokens of a piece.
      window: the number of nearest visible tokens, including the token itself; None for all.
    """

    query_starts: jax.Array
    key_starts: jax.Array
    query_piece: int = dataclasses.field(metadata={"static": True})
    key_piece: int = dataclasses.field(metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __call__(self, b: Any, h: Any, q: Any, k: Any) -> Any:
        query, key = self._position(q, rows="queries"), self._position(k, rows="keys")
        return self._visible(query - key, query - key)

    def bounds(self, blocks: Blocks) -> Bounds:
        first_query, last_query = (self._position(x, rows="queries") for x in blocks.query_ends())
        first_key, last_key = (self._position(x, rows="keys") for x in blocks.key_ends())
        nearest, furthest = first_query - last_key, last_query - first_key
        return self._visible(furthest, nearest), self._visible(nearest, furthest)

    def _visible(self, distance: Any, other_distance: Any) -> Any:
        """Whether the query is behind the key, and inside the window; a distance for each limit."""
        return (distance >= 0) & (True if self.window is None else other_distance < self.window)

    def _position(self, i: Any, *, rows: str) -> Any:
        starts, piece = (
            (self.query_starts, self.query_piece) if rows == "queries" else (self.key_starts, self.key_piece)
        )
        if starts.shape[0] == 1:
            return i + starts[0]
        return i + jnp.where(i < piece, starts[0], starts[1] - piece)
