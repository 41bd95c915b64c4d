"""The two memories of a device that a run uses: its own memory, and pinned host memory.

The device copies from pinned host memory by itself.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax

PINNED = "pinned_host"
"""JAX's name of pinned host memory."""

Tree = TypeVar("Tree")


def to_host(tree: Tree) -> Tree:
    """The arrays in pinned host memory; under `jax.jit` the copy runs while the device computes."""
    return jax.device_put(tree, jax.memory.Space.Host)


def to_device(tree: Tree) -> Tree:
    """The arrays in the device's own memory."""
    return jax.device_put(tree, jax.memory.Space.Device)


def is_traced_on_host(x: jax.Array) -> bool:
    """Whether a traced array has a type in pinned host memory."""
    return jax.typeof(x).memory_space is jax.memory.Space.Host


def is_on_host(x: Any) -> bool:
    """Whether an array, or a ShapeDtypeStruct with a sharding, is in pinned host memory."""
    return x.sharding is not None and x.sharding.memory_kind == PINNED


def moved(x: Any, *, on_host: bool) -> Any:
    """The array in pinned host memory or in device memory; not copied if it is there already.

    A ShapeDtypeStruct with a sharding gets a new sharding; one without a sharding is unchanged.
    """
    if x.sharding is None or is_on_host(x) == on_host:
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        there = x.sharding.with_memory_kind(PINNED if on_host else "device")
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there)
    return to_host(x) if on_host else to_device(x)
