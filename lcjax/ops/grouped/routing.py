"""Rows sorted by expert, in blocks that belong to one expert each.

A token has several experts. Each choice of a token is one row. An expert's rows are adjacent, and
fill whole blocks; the rest of its last block is empty rows. So no array has an axis of tokens and
one of experts, whatever the experts that tokens choose.

Shapes: T tokens, C choices of a token, E experts, N blocks, M rows per block, R = N M rows, D
features.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

_MOST_ROWS, _FEWEST_ROWS = 128, 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """The rows of a batch of tokens.

    Attributes:
      expert_N: int32, the expert of each block; E for a block without rows.
      first_E1: int32 [E + 1], the first block of each expert, and the number of all blocks with
        rows. An expert without rows has no block.
      choice_R: int32, the token and choice of each row as `token * C + choice`; -1 for an empty
        row.
      row_TC: int32, the row of each choice.
    """

    expert_N: jax.Array
    first_E1: jax.Array
    choice_R: jax.Array
    row_TC: jax.Array

    @property
    def experts(self) -> int:
        return len(self.first_E1) - 1

    @property
    def block_rows(self) -> int:
        """The rows of a block."""
        return len(self.choice_R) // len(self.expert_N)

    @property
    def expert_R(self) -> jax.Array:
        """The expert of each row, int32; an existing one also for rows of no expert."""
        return jnp.repeat(jnp.minimum(self.expert_N, self.experts - 1), self.block_rows)


def route(expert_TC: jax.Array, experts: int) -> Routing:
    """The rows for the experts, in [0, E), that each token has chosen; int32."""
    choices = expert_TC.size
    size = rows_per_block(choices, experts)
    # Every expert with rows has at most size - 1 empty ones.
    blocks = min(choices, (choices + experts * (size - 1)) // size)
    expert_A = expert_TC.reshape(-1).astype(jnp.int32)
    order_A = jnp.argsort(expert_A, stable=True).astype(jnp.int32)
    sorted_A = expert_A[order_A]
    edges_E1 = jnp.searchsorted(sorted_A, jnp.arange(experts + 1, dtype=jnp.int32), method="scan_unrolled")
    edges_E1 = edges_E1.astype(jnp.int32)
    blocks_E = (edges_E1[1:] - edges_E1[:-1] + size - 1) // size
    first_E1 = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(blocks_E, dtype=jnp.int32)])
    row_A = first_E1[sorted_A] * size + jnp.arange(choices, dtype=jnp.int32) - edges_E1[sorted_A]
    number_N = jnp.arange(blocks, dtype=jnp.int32)
    return Routing(
        # The first block after n begins the next expert with rows.
        expert_N=jnp.searchsorted(first_E1, number_N, side="right", method="scan_unrolled").astype(jnp.int32) - 1,
        first_E1=first_E1,
        choice_R=jnp.full(blocks * size, -1, jnp.int32).at[row_A].set(order_A, unique_indices=True),
        row_TC=jnp.zeros(choices, jnp.int32).at[order_A].set(row_A, unique_indices=True).reshape(expert_TC.shape),
    )


def rows_per_block(choices: int, experts: int) -> int:
    """A power of two, so that few rows are empty and matrices are still read rarely."""
    size = _MOST_ROWS
    while size > _FEWEST_ROWS and size * experts > choices:
        size //= 2
    return size


@jax.custom_vjp
def dispatch(x_TD: jax.Array, routing: Routing) -> jax.Array:
    """Each row's token [R, D], zeros in empty rows; in x's dtype.

    The gradient of a token is the sum over its choices, in float32 and in their order.
    """
    return _rows(x_TD, routing.choice_R, routing.row_TC.shape[1])


def _dispatch_forward(x_TD, routing):
    return dispatch(x_TD, routing), routing


def _dispatch_backward(routing, dx_RD):
    dx_TCD = dx_RD[routing.row_TC]
    return dx_TCD.astype(jnp.float32).sum(1).astype(dx_RD.dtype), None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@jax.custom_vjp
def collect(y_RD: jax.Array, routing: Routing) -> jax.Array:
    """The row of each choice, [T, C, D]."""
    return y_RD[routing.row_TC]


def _collect_forward(y_RD, routing):
    return collect(y_RD, routing), routing


def _collect_backward(routing, dy_TCD):
    return _rows(dy_TCD.reshape(-1, dy_TCD.shape[-1]), routing.choice_R, 1), None


collect.defvjp(_collect_forward, _collect_backward)


def _rows(x_AD: jax.Array, choice_R: jax.Array, choices: int) -> jax.Array:
    """`x[choice // choices]` for each row; zeros for an empty one."""
    return jnp.where(choice_R[:, None] < 0, jnp.zeros((), x_AD.dtype), x_AD[jnp.maximum(choice_R, 0) // choices])
