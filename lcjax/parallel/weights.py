"""Weights that the devices of a host share: each has some rows of every matrix.

A layer's matrices are gathered when the layer runs, so a device has the whole matrices of one layer
at a time. Their gradients are summed over the devices, and each keeps the sum of its own rows. The
optimizer then changes these rows, with the moments of these rows. Vectors, such as the weights of
norms, and adapters are whole on every device.

Source: Rajbhandari et al., ZeRO, arXiv 1910.02054, stage 3; Zhao et al., FSDP, arXiv 2304.11277.
"""

from __future__ import annotations

import functools
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec, Sharding

from lcjax.config.parallel.mesh import AXES, MeshShape
from lcjax.parallel.placement import with_spec

Tree = TypeVar("Tree")


def is_cut(mesh: MeshShape, path: Any, leaf: Any) -> bool:
    """Whether devices have different rows of a leaf.

    Args:
      path: of the leaf in a tree of parameters, of one layer or of all, or in an optimizer's state.
      leaf: the array, or anything with its number of axes.
    """
    names = _names(path)
    stacked = ("layers" in names) + ("experts" in names)
    return bool(mesh.shard_axes) and "weight" in names and leaf.ndim - stacked == 2


def spec_of(mesh: MeshShape, path: Any, leaf: Any) -> PartitionSpec:
    """Which part of a leaf each device has."""
    if not is_cut(mesh, path, leaf):
        return PartitionSpec()
    return PartitionSpec(*[None] * (leaf.ndim - 2), mesh.shard_axes)


def specs_of(mesh: MeshShape, tree: Any) -> Any:
    """`spec_of` for every leaf."""
    return jax.tree.map_with_path(functools.partial(spec_of, mesh), tree)


def divided(sharding: Sharding, mesh: MeshShape, path: Any, leaf: Any) -> Sharding:
    """The sharding of a leaf on the devices of a sharding that is the same for all leaves."""
    return with_spec(sharding, spec_of(mesh, path, leaf))


def part_bytes(leaf: Any) -> int:
    """The bytes of one device's part of an array; of all of it if it has no sharding."""
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def gather_layer(mesh: MeshShape, params: Tree) -> Tree:
    """The whole parameters of one layer, or of a module outside of the layers."""
    if not mesh.shard_axes:
        return params
    return jax.tree.map_with_path(lambda path, x: gather_rows(mesh, x) if is_cut(mesh, path, x) else x, params)


def gather_rows(mesh: MeshShape, x: jax.Array) -> jax.Array:
    """All rows of a matrix, or of every expert's. Each device has some of them.

    Gradients are summed in float32.
    """
    return _gather(mesh, x) if mesh.shard_axes else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(mesh, x):
    return lax.all_gather(x, mesh.shard_axes, axis=x.ndim - 2, tiled=True)


def _gather_forward(mesh, x):
    return _gather(mesh, x), None


def _gather_backward(mesh, _, gradient):
    return (scatter_rows(mesh, gradient.astype(jnp.float32)).astype(gradient.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


def scatter_rows(mesh: MeshShape, gradient: jax.Array) -> jax.Array:
    """This device's rows of the sum of a matrix over the devices that share it."""
    return lax.psum_scatter(gradient, mesh.shard_axes, scatter_dimension=gradient.ndim - 2, tiled=True)


def scatter_layer(mesh: MeshShape, paths: list[Any], gradients: list[jax.Array]) -> list[jax.Array]:
    """`scatter_rows` of those gradients of a layer whose parameters are cut; `paths` are theirs."""
    pairs = zip(paths, gradients, strict=True)
    return [scatter_rows(mesh, x) if is_cut(mesh, path, x) else x for path, x in pairs]


def sum_gradients(mesh: MeshShape, tree: Tree) -> Tree:
    """The sum of gradients over all devices, in float32.

    Cut leaves are already sums over the devices that share them.
    """
    if mesh.size == 1:
        return tree

    def summed(path, x):
        axes = tuple(axis for axis in AXES if not (is_cut(mesh, path, x) and axis in mesh.shard_axes))
        return lax.psum(x.astype(jnp.float32), axes).astype(x.dtype) if axes else x

    return jax.tree.map_with_path(summed, tree)


def global_norm(mesh: MeshShape, tree: Any) -> jax.Array:
    """The Euclidean norm of all leaves together, summed in float32 for leaves of any dtype."""

    def squares(path, x):
        own = jnp.sum(jnp.square(x.astype(jnp.float32)))
        return lax.psum(own, mesh.shard_axes) if is_cut(mesh, path, x) else own

    return jnp.sqrt(sum(squares(path, x) for path, x in jax.tree.leaves_with_path(tree)))


def _names(path: Any) -> list[Any]:
    return [getattr(key, "key", getattr(key, "name", None)) for key in path]
