"""Embedding and head in host memory between the two moments of a step at which they are used.

Frozen, they lie on the device through all layers for nothing: the embedding is read before the first, the head after the last.
Copying each for its own use takes the seconds that its bytes take over PCI Express, once a pass over a batch.

Shapes: V vocabulary, D hidden size.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from lcjax.config import EMBEDDING_MODULES
from lcjax.parallel.memories import is_traced_on_host, moved, to_device

Tree = dict[str, Any]


def fetched(weight: jax.Array) -> jax.Array:
    """The weight on the device; where it is there already, itself."""
    return to_device(weight) if is_traced_on_host(weight) else weight


def fetched_for(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x, the weight on the device), which is not copied there before x is: a table that is embedding and head is copied twice."""
    if not is_traced_on_host(weight):
        return x, weight
    x, weight = lax.optimization_barrier((x, weight))
    return x, fetched(weight)


def place_embeddings(params: Tree, *, on_host: bool) -> Tree:
    """The parameters with embedding and head in pinned host memory, or on the device; what is there already is not copied.

    Of ShapeDtypeStructs those that have a place are given the other.
    """
    modules = [name for name in EMBEDDING_MODULES if name in params]
    return params | {
        name: params[name] | {"weight": moved(params[name]["weight"], on_host=on_host)} for name in modules
    }
