"""How devices share a chunk of tokens: its tokens outside of attention, the heads inside.

Every device has the keys and values of all tokens for an equal part of the heads. It computes
everything else for an equal part of a chunk's tokens, or for all of them if they do not divide, as
the one token of a step does not. One device has everything, and nothing is exchanged.

Shapes: B batch, T tokens of a chunk, t tokens of a device, N devices, H heads, d head_dim.
Source: Jacobs et al., DeepSpeed-Ulysses, arXiv 2309.14509.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.config.parallel.mesh import HEADS, copies_of_kv


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Between `devices` devices along `heads`, for chunks of `tokens` tokens."""

    devices: int
    tokens: int

    @property
    def divides_tokens(self) -> bool:
        """Whether the devices have different tokens."""
        return self.devices > 1 and self.tokens % self.devices == 0

    def own_tokens(self, x_BT: jax.Array) -> jax.Array:
        """[B, t] from [B, T]."""
        return self._own_part(x_BT, axis=1) if self.divides_tokens else x_BT

    def all_tokens(self, x_BtD: jax.Array) -> jax.Array:
        """[B, T, D] from [B, t, D]."""
        return lax.all_gather(x_BtD, HEADS, axis=1, tiled=True) if self.divides_tokens else x_BtD

    def own_heads(self, x_BtHd: jax.Array) -> jax.Array:
        """[B, T, H / N, d] from [B, t, H, d]."""
        if self.devices == 1:
            return x_BtHd
        if self.divides_tokens:
            return lax.all_to_all(x_BtHd, HEADS, split_axis=2, concat_axis=1, tiled=True)
        return self._own_part(x_BtHd, axis=2)

    def own_kv_heads(self, x_BtKd: jax.Array) -> jax.Array:
        """The same for keys or values, whose heads have copies if there are more devices."""
        copies = copies_of_kv(self.devices, x_BtKd.shape[2])
        return self.own_heads(x_BtKd if copies == 1 else jnp.repeat(x_BtKd, copies, axis=2))

    def own_sinks(self, sinks_H: jax.Array | None) -> jax.Array | None:
        """[H / N] from [H]."""
        return sinks_H if sinks_H is None or self.devices == 1 else self._own_part(sinks_H, axis=0)

    def all_heads(self, x: jax.Array) -> jax.Array:
        """The inverse of `own_heads`."""
        if self.devices == 1:
            return x
        if self.divides_tokens:
            return lax.all_to_all(x, HEADS, split_axis=1, concat_axis=2, tiled=True)
        return lax.all_gather(x, HEADS, axis=2, tiled=True)

    def _own_part(self, x: jax.Array, axis: int) -> jax.Array:
        size = x.shape[axis] // self.devices
        return lax.dynamic_slice_in_dim(x, lax.axis_index(HEADS) * size, size, axis)
