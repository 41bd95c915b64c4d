"""The two memories of a device that a run uses: its own, and pinned host memory, from which it copies by itself."""

from __future__ import annotations

from typing import Any, TypeVar

import jax

PINNED = "pinned_host"
"""What JAX calls pinned host memory."""

Tree = TypeVar("Tree")


def to_host(tree: Tree) -> Tree:
    """The arrays in pinned host memory; under `jax.jit` a copy that runs while the device computes."""
    return jax.device_put(tree, jax.memory.Space.Host)


def to_device(tree: Tree) -> Tree:
    """The arrays in the device's own memory."""
    return jax.device_put(tree, jax.memory.Space.Device)


def is_traced_on_host(x: jax.Array) -> bool:
    """Whether the type of an array, as a traced function sees it, says pinned host memory."""
    return jax.typeof(x).memory_space is jax.memory.Space.Host


def is_on_host(x: Any) -> bool:
    """Whether an array, or a ShapeDtypeStruct that has a place, is in pinned host memory."""
    return x.sharding is not None and x.sharding.memory_kind == PINNED


def moved(x: Any, *, on_host: bool) -> Any:
    """The array in pinned host memory, or in the device's own; what is there already is not copied.

    A ShapeDtypeStruct that has a place gets the other one; one without a place stays as it is.
    """
    if x.sharding is None or is_on_host(x) == on_host:
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        there = x.sharding.with_memory_kind(PINNED if on_host else "device")
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there)
    return to_host(x) if on_host else to_device(x)
