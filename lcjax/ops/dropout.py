"""Dropout whose mask for a token depends on the token's place in its sequence alone.

So neither the tiles in which a layer runs nor the devices that share a sequence change the mask.

Shapes: B sequences, T tokens, I features.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class DropoutKey(NamedTuple):
    """A random key, and which tokens of a sequence it is for.

    Attributes:
      key: raw uint32 bits, as of `jax.random.key_data`.
      places_T: int32, the index in the sequence of each token.
    """

    key: jax.Array
    places_T: jax.Array

    def split(self, count: int) -> list[DropoutKey]:
        """Independent keys for the same tokens."""
        return [DropoutKey(key, self.places_T) for key in jax.random.split(self.key, count)]


def split_key(key: DropoutKey | None, count: int) -> list[DropoutKey | None]:
    """A key for each of `count` parts; None for each part if `key` is None."""
    return [None] * count if key is None else [*key.split(count)]


def dropout(x_BTI: jax.Array, rate: float, key: DropoutKey) -> jax.Array:
    """x with every element set to 0 with probability `rate`, and the others divided by `1 - rate`.

    Source: Srivastava et al., Dropout, Journal of Machine Learning Research 15, 2014.
    """
    batch, _, features = x_BTI.shape

    def of_token(place: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key.key, place), 1.0 - rate, (batch, features))

    kept_BTI = jax.vmap(of_token, out_axes=1)(key.places_T)
    return jnp.where(kept_BTI, x_BTI / (1.0 - rate), jnp.zeros_like(x_BTI))
