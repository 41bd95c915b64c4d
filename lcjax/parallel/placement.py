"""Which devices arrays are on."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from lcjax.parallel.memories import PINNED

Tree = TypeVar("Tree")


def this_device() -> Any:
    """The device that this process computes on. Initializes JAX's backend."""
    return jax.local_devices()[0]


def pinned_here() -> Sharding:
    """The pinned host memory of this process."""
    return SingleDeviceSharding(this_device(), memory_kind=PINNED)


def on_one(device: Any, memory_kind: str | None = None) -> NamedSharding:
    """A sharding on a mesh of one device.

    JAX reads the memory kind of an abstract array from no other kind of sharding.
    """
    return NamedSharding(Mesh([device], ("device",)), PartitionSpec(), memory_kind=memory_kind)


def abstract_like(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array, to compile a step for it; its values are not read."""
    sharding = leaf.sharding
    if isinstance(sharding, SingleDeviceSharding):
        [device] = sharding.device_set
        sharding = on_one(device, sharding.memory_kind)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def with_spec(sharding: Sharding, spec: PartitionSpec) -> Sharding:
    """A sharding on the same mesh and in the same memory; one without a mesh is unchanged."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return type(sharding)(sharding.mesh, spec, memory_kind=sharding.memory_kind)


def committed(tree: Tree) -> Tree:
    """The same arrays, committed to their current devices.

    Restored arrays are committed too, so JAX compiles one program for both.
    """
    return jax.device_put(tree, jax.tree.map(lambda leaf: leaf.sharding, tree))
