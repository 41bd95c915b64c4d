"""Sums and maxima over the devices of a mesh, inside `jax.shard_map`.

On one device they do nothing.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.config.parallel.mesh import AXES, CONTEXT, DATA, HEADS, RING, MeshShape

Tree = TypeVar("Tree")


def sum_over(mesh: MeshShape, tree: Tree) -> Tree:
    """The sum of every leaf over all devices."""
    return tree if mesh.size == 1 else lax.psum(tree, AXES)


def sum_over_context(mesh: MeshShape, tree: Tree) -> Tree:
    """The sum of every leaf over the devices that share a sequence."""
    return tree if mesh.context == 1 else lax.psum(tree, CONTEXT)


def largest_over(mesh: MeshShape, x: jax.Array) -> jax.Array:
    """The largest value on the devices that share a sequence."""
    return x if mesh.context == 1 else lax.pmax(x, CONTEXT)


def places_of(mesh: MeshShape, tokens: int) -> jax.Array:
    """The index in its sequence of each of this device's `tokens` tokens, int32 [tokens].

    They are those of `lcjax.parallel.devices.token_order`.
    """
    if mesh.context == 1:
        return jnp.arange(tokens, dtype=jnp.int32)
    group, of_group = lax.axis_index(RING), lax.axis_index(HEADS)
    local = of_group * tokens + jnp.arange(tokens, dtype=jnp.int32)
    if mesh.ring == 1:
        return local
    piece = tokens * mesh.heads // 2
    start = jnp.where(local < piece, group * piece, (mesh.pieces - 2 - group) * piece)
    return (start + local).astype(jnp.int32)


def all_tokens(mesh: MeshShape, x: jax.Array, axis: int) -> jax.Array:
    """The tokens of all devices that share a sequence, in the order of the devices."""
    return x if mesh.context == 1 else lax.all_gather(x, CONTEXT, axis=axis, tiled=True)


def own_part(mesh: MeshShape, x: jax.Array) -> jax.Array:
    """This device's part along `data` of an array whose first axis is that of the micro-batches."""
    if mesh.data == 1:
        return x
    count = x.shape[0] // mesh.data
    return lax.dynamic_slice_in_dim(x, lax.axis_index(DATA) * count, count)
