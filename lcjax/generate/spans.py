"""The keys and values that layers keep: of all tokens, or of the last ones that their window sees.

Layers that keep the same tokens share two arrays. A window keeps a few tokens more than it sees, so
that the last tokens of a sequence can be replaced, and discards the oldest when others come.

Shapes: L layers of a span, B batch, S tokens that are stored, T new tokens, K key/value heads, d
head_dim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.config import LlamaConfig
from lcjax.parallel.devices import CACHE, Devices

SPARE = 64
"""Tokens that a window keeps in addition to those that it sees."""
MULTIPLE = 128  # of stored tokens; kernels read whole blocks


class Visible(NamedTuple):
    """Keys and values [B, S, K, d] that new tokens see; the first new token is at `offset`."""

    keys_BSKd: jax.Array
    values_BSKd: jax.Array
    offset: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Span:
    """Rotated keys and values [L, B, S, K, d] of some layers, in the weights' dtype.

    Attributes:
      first: int32, the number of the token that is stored first.
      layers: the numbers of the layers, ascending.
      window: the tokens that the layers see, including the newest; None for all.
    """

    keys_LBSKd: jax.Array
    values_LBSKd: jax.Array
    first: jax.Array
    layers: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    window: int | None = dataclasses.field(metadata={"static": True})

    @property
    def stored(self) -> int:
        """How many tokens there is space for."""
        return self.keys_LBSKd.shape[2]

    def has(self, tokens: int) -> bool:
        """Whether every token is stored that a token after the first `tokens` sees."""
        return self.window is None or int(self.first) <= max(0, tokens - self.window + 1)

    def add(
        self, layer: jax.Array, new: tuple[jax.Array, jax.Array], length: jax.Array, count: int | jax.Array
    ) -> tuple[Span, Callable[[], Visible]]:
        """(the span with a layer's new keys and values, a function that returns what they see).

        If the layer is not of this span, nothing changes, and the function must not be called.

        Args:
          new: keys and values [B, T, K, d]; those from `count` on are padding.
          length: the number of tokens before them.
        """
        place = jnp.sum(jnp.asarray(self.layers) < layer, dtype=jnp.int32)
        place = jnp.minimum(place, len(self.layers) - 1)
        is_own = (jnp.asarray(self.layers) == layer).any()
        offset = length - self.first
        arrays = self.keys_LBSKd, self.values_LBSKd
        if self.window is None:
            arrays = [_write(whole, x, place, offset, is_own) for whole, x in zip(arrays, new, strict=True)]
            keys, values = arrays
            return self._with(arrays), lambda: Visible(_layer(keys, place), _layer(values, place), offset)
        joined = [_joined(_layer(whole, place), x, offset) for whole, x in zip(arrays, new, strict=True)]
        dropped = self._dropped(length, count)
        kept = [lax.dynamic_slice_in_dim(x, dropped, self.stored, axis=1) for x in joined]
        arrays = [_write(whole, x, place, 0, is_own) for whole, x in zip(arrays, kept, strict=True)]
        keys, values = joined
        return self._with(arrays), lambda: Visible(keys, values, offset)

    def after(self, length: jax.Array, count: int | jax.Array) -> Span:
        """The span after `add` for all its layers."""
        return dataclasses.replace(self, first=self.first + self._dropped(length, count))

    def _with(self, arrays: Sequence[jax.Array]) -> Span:
        keys_LBSKd, values_LBSKd = arrays
        return dataclasses.replace(self, keys_LBSKd=keys_LBSKd, values_LBSKd=values_LBSKd)

    def _dropped(self, length: jax.Array, count: int | jax.Array) -> jax.Array:
        if self.window is None:
            return jnp.int32(0)
        return jnp.maximum(length - self.first + count - self.stored, 0)


def empty_spans(
    config: LlamaConfig, capacity: int, batch: int, kv_heads: int, dtype: jnp.dtype, devices: Devices
) -> tuple[Span, ...]:
    """Empty spans for `capacity` tokens: one for each window that is shorter, one for the rest."""
    windows = [_window_within(capacity, config.views[view].window) for view in config.view_of_layer]

    def span(window: int | None) -> Span:
        layers = tuple(n for n, own in enumerate(windows) if own == window)
        stored = capacity if window is None else _stored(window)
        shape = len(layers), batch, stored, kv_heads, config.head_dim
        keys, values = (devices.zeros(shape, dtype, CACHE) for _ in range(2))
        return Span(keys, values, jnp.int32(0), layers, window)

    return tuple(map(span, dict.fromkeys(windows)))


def span_of_layer(spans: Sequence[Span], layer: jax.Array) -> jax.Array:
    """The index of the span of a layer, int32."""
    of_every_layer = {number: n for n, span in enumerate(spans) for number in span.layers}
    return jnp.asarray([of_every_layer[number] for number in sorted(of_every_layer)], jnp.int32)[layer]


def _stored(window: int) -> int:
    return -(-(window - 1 + SPARE) // MULTIPLE) * MULTIPLE


def _window_within(capacity: int, window: int | None) -> int | None:
    return None if window is None or _stored(window) >= capacity else window


def _layer(whole_LBSKd: jax.Array, place: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(whole_LBSKd, place, keepdims=False)


def _joined(stored_BSKd: jax.Array, new_BTKd: jax.Array, offset: jax.Array) -> jax.Array:
    """[B, S + T, K, d]: the stored tokens, and from `offset` on the new ones."""
    space = [(0, 0), (0, new_BTKd.shape[1]), (0, 0), (0, 0)]
    return lax.dynamic_update_slice_in_dim(jnp.pad(stored_BSKd, space), new_BTKd, offset, axis=1)


def _write(whole_LBSKd: jax.Array, new_BTKd: jax.Array, place, offset, is_own: jax.Array) -> jax.Array:
    """Writes a layer's new values, or the old ones again.

    A branch would copy the whole array; this changes it in place.
    """
    start = place, 0, offset, 0, 0
    old = lax.dynamic_slice(whole_LBSKd, start, (1, *new_BTKd.shape))
    return lax.dynamic_update_slice(whole_LBSKd, jnp.where(is_own, new_BTKd[None], old), start)
