"""On which devices arrays are. Today a run has one: this process' first."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from lcjax.parallel.memories import PINNED

Tree = TypeVar("Tree")


def this_device() -> Any:
    """The device that this process computes on. Starts JAX's devices."""
    return jax.local_devices()[0]


def pinned_here() -> Sharding:
    """This process' pinned host memory."""
    return SingleDeviceSharding(this_device(), memory_kind=PINNED)


def on_one(device: Any, memory_kind: str | None = None) -> NamedSharding:
    """On a mesh of the one device: of no other sharding does JAX read off in which memory an abstract array is."""
    return NamedSharding(Mesh([device], ("device",)), PartitionSpec(), memory_kind=memory_kind)


def abstract_like(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Shape, dtype and place of an array, as a step is compiled for it; its values are not looked at."""
    sharding = leaf.sharding
    if isinstance(sharding, SingleDeviceSharding):
        [device] = sharding.device_set
        sharding = on_one(device, sharding.memory_kind)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def committed(tree: Tree) -> Tree:
    """The same arrays, bound to the devices that they are on, as restored ones are: JAX compiles one program for both."""
    return jax.device_put(tree, jax.tree.map(lambda leaf: leaf.sharding, tree))
