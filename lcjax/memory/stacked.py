"""The scan over layers, and one layer's arrays from the stacked arrays of all layers."""

from __future__ import annotations

from collections.abc import Callable
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


def scan_layers(
    layer: Callable[[Any, jax.Array, Tree], tuple[Any, Tree]],
    carry: Any,
    numbers: jax.Array,
    sliced: Tree = None,
    *,
    reverse: bool = False,
    checkpoint: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda body: body,
) -> tuple[Any, Tree]:
    """Folds `layer(carry, number, inputs) -> (carry, output)` over layers, one after another.

    Every pass over the layers of a model is this scan, so the time to compile it does not depend on
    their number.

    Args:
      numbers: of `layer_numbers`, or some of them. A layer may also be a group of layers, with an
        array of numbers.
      sliced: arrays whose leading axis is that of `numbers`. The scan slices them, so that it also
        accumulates their gradients. Other arrays are read by `layer_at`.
      reverse: from the last layer to the first.
      checkpoint: how the body of the scan is rematerialized; see `lcjax.memory.checkpoint`.

    Returns:
      (the last carry, the stacked outputs).
    """

    def body(carry, inputs):
        number, sliced = inputs
        return layer(carry, number, sliced)

    return lax.scan(checkpoint(body), carry, (numbers, sliced), reverse=reverse)
