"""One layer's arrays out of the stacks of all layers'."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tree = Any


def layer_numbers(count: int) -> jax.Array:
    """int32 0 to count - 1, for a scan over layers beside which copies to and from host memory run.

    The compiler may not know them. What lies at a place that XLA can foresee (as of jax 0.11) it takes out of a stack as a copy of
    the device's, on the streams of the host's copies, where a weight that takes 0.1 ms waits for an input that takes 5; what lies
    anywhere else, by a kernel.
    """
    return lax.optimization_barrier(jnp.arange(count, dtype=jnp.int32))


def layer_at(stacked: Tree, layer: jax.Array) -> Tree:
    """The entries of one layer, of every leaf [L, ...]."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, layer, keepdims=False), stacked)
