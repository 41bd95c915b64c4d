"""Frozen embedding and head in host memory, copied to the device only when they are used.

The embedding is read before the first layer and the head after the last. In between they would take
device memory without being used. Each is copied once per pass over a batch, which takes as many
seconds as its bytes take over PCI Express.

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
    """The weight on the device; unchanged if it is there already."""
    return to_device(weight) if is_traced_on_host(weight) else weight


def fetched_for(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x, the weight on the device); the copy starts only after x has been computed.

    A table that is both embedding and head is therefore copied twice.
    """
    if not is_traced_on_host(weight):
        return x, weight
    x, weight = lax.optimization_barrier((x, weight))
    return x, fetched(weight)


def place_embeddings(params: Tree, *, on_host: bool) -> Tree:
    """The parameters with embedding and head in pinned host memory, or on the device.

    What is there already is not copied. A ShapeDtypeStruct with a sharding gets a new sharding.
    """
    modules = [name for name in EMBEDDING_MODULES if name in params]
    return params | {
        name: params[name] | {"weight": moved(params[name]["weight"], on_host=on_host)} for name in modules
    }
