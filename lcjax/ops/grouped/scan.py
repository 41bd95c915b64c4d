"""The product in XLA: a scan over blocks, each with the matrix of its expert.

Shapes: as in `lcjax.ops.grouped.product`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.ops.grouped.routing import Routing


def product(x_RI: jax.Array, weight_EOI: jax.Array, routing: Routing, transposed: bool) -> jax.Array:
    """See `lcjax.ops.grouped.product.Product`."""
    contracted = (((1,), (0 if transposed else 1,)), ((), ()))

    def one_block(_, block):
        x_MI, expert = block
        y_MO = lax.dot_general(x_MI, _of_expert(weight_EOI, expert), contracted, preferred_element_type=jnp.float32)
        return None, y_MO.astype(x_RI.dtype)

    _, y_NMO = lax.scan(one_block, None, (_blocks(x_RI, routing), routing.expert_N))
    return y_NMO.reshape(len(x_RI), -1)


def outer_product(dy_RO: jax.Array, x_RI: jax.Array, routing: Routing) -> jax.Array:
    """See `lcjax.ops.grouped.product.Product`."""

    def one_block(sum_EOI, block):
        dy_MO, x_MI, expert = block
        own_OI = lax.dot_general(dy_MO, x_MI, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return sum_EOI.at[expert].add(own_OI, mode="drop"), None

    start_EOI = jnp.zeros((routing.experts, dy_RO.shape[1], x_RI.shape[1]), jnp.float32)
    blocks = _blocks(dy_RO, routing), _blocks(x_RI, routing), routing.expert_N
    return lax.scan(one_block, start_EOI, blocks)[0].astype(x_RI.dtype)


def _blocks(x_RI: jax.Array, routing: Routing) -> jax.Array:
    return x_RI.reshape(len(routing.expert_N), routing.block_rows, -1)


def _of_expert(weight_EOI: jax.Array, expert: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(weight_EOI, jnp.minimum(expert, len(weight_EOI) - 1), keepdims=False)
