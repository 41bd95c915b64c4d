"""Loops over tiles of the sequence that update whole arrays in place.

Shapes: B batch, T tokens, t tokens of a tile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from lcjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Tiles:
    """`count` tiles of `size` tokens each, which together cover the sequence."""

    count: int
    size: int

    @classmethod
    def of(cls, tokens: int, tile: int) -> Tiles:
        """The fewest equal tiles of at most `tile` tokens.

        Raises:
          InputError: the number of tokens has no divisor near `tile`, so the tiles would be tiny.
        """
        least = -(-tokens // tile)
        count = next(n for n in range(least, tokens + 1) if tokens % n == 0)
        if count >= 4 * least and tokens // count < 1024:
            raise InputError(
                f"{tokens:,} tokens cut into equal tiles of at most {tile:,} leave "
                f"{tokens // count:,} a tile; use a multiple of 1,024 tokens, or a tile of "
                f"{tokens:,}"
            )
        return cls(count, tokens // count)

    def take(self, x: jax.Array, i: Any, axis: int = 1) -> jax.Array:
        """Tile i of an array."""
        return lax.dynamic_slice_in_dim(x, i * self.size, self.size, axis)

    def put(self, x: jax.Array, tile: jax.Array, i: Any, axis: int = 1) -> jax.Array:
        """The array with tile i replaced; in place inside a loop that carries the array."""
        return lax.dynamic_update_slice_in_dim(x, tile.astype(x.dtype), i * self.size, axis)

    def loop(self, body: Callable[[jax.Array, Any], Any], carry: Any) -> Any:
        """Folds `body(i, carry)` over the tiles."""
        return lax.fori_loop(0, self.count, body, carry)
