"""Embedding and head in host memory between the two moments of a step at which they are used.

Frozen, they lie on the device through all layers for nothing: the embedding is read before the first, the head after the last.
Copying each for its own use takes the seconds that its bytes take over PCI Express, once a pass over a batch.

Shapes: V vocabulary, D hidden size.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lcjax.config import EMBEDDING_MODULES

Tree = dict[str, Any]

PINNED = "pinned_host"


def fetched(weight: jax.Array) -> jax.Array:
    """The weight on the device; where it is there already, itself."""
    return jax.device_put(weight, jax.memory.Space.Device) if _is_typed_as_host(weight) else weight


def fetched_for(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x, the weight on the device), which is not copied there before x is: a table that is embedding and head is copied twice."""
    if not _is_typed_as_host(weight):
        return x, weight
    x, weight = lax.optimization_barrier((x, weight))
    return x, fetched(weight)


def is_on_host(weight: Any) -> bool:
    """Whether an array, or a ShapeDtypeStruct that has a place, is in pinned host memory."""
    return weight.sharding is not None and weight.sharding.memory_kind == PINNED


def on_one(device: Any, memory_kind: str | None = None) -> NamedSharding:
    """On a mesh of the one device: of no other sharding does JAX read off in which memory an abstract array is."""
    return NamedSharding(Mesh([device], ("device",)), PartitionSpec(), memory_kind=memory_kind)


def _is_typed_as_host(weight: jax.Array) -> bool:
    return jax.typeof(weight).memory_space is jax.memory.Space.Host


def place_embeddings(params: Tree, *, on_host: bool) -> Tree:
    """The parameters with embedding and head in pinned host memory, or on the device; what is there already is not copied.

    Of ShapeDtypeStructs those that have a place are given the other.
    """

    def placed(weight: Any) -> Any:
        if weight.sharding is None or is_on_host(weight) == on_host:
            return weight
        if isinstance(weight, jax.ShapeDtypeStruct):
            there = weight.sharding.with_memory_kind(PINNED if on_host else "device")
            return jax.ShapeDtypeStruct(weight.shape, weight.dtype, sharding=there)
        return jax.device_put(weight, jax.memory.Space.Host if on_host else jax.memory.Space.Device)

    modules = [name for name in EMBEDDING_MODULES if name in params]
    return params | {name: params[name] | {"weight": placed(params[name]["weight"])} for name in modules}
