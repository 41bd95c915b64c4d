"""One layer's arrays from the stacked arrays of all layers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tree = Any


def layer_numbers(count: int) -> jax.Array:
    """int32 0 to count - 1, for a scan over layers with concurrent copies to and from host memory.

    The barrier hides the values from the compiler. If XLA (as of jax 0.11) can compute an index in
    advance, it reads the entry of a stack by a device copy on the streams of the host copies. A
    weight that takes 0.1 ms then waits for an input that takes 5 ms. Otherwise XLA reads the entry
    by a kernel.
    """
    return lax.optimization_barrier(jnp.arange(count, dtype=jnp.int32))


def layer_at(stacked: Tree, layer: jax.Array) -> Tree:
    """The entry of one layer from every leaf [L, ...]."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, layer, keepdims=False), stacked)
