"""Softmax over blocks of keys, in base 2: its state between two blocks, and the step of a block.

Shapes: M queries, N keys of a block, D head_dim.
Source: Dao, FlashAttention-2, arXiv 2307.08691; the compensated sum: Kahan, Communications of the
ACM 8(1), 1965.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lcjax.pallas.mosaic.launch import over_rows

HIDDEN = -1e30
"""A score after multiplication by c: far below every visible one, and still a finite number. A
query whose maximum is below half of it sees no key."""

MANY_KEYS = 2**17
"""For more keys the sum of weights is compensated, as in the Triton kernels. Without it, the
log-sum-exp of a million keys had 1.5 times the error that the tolerance rule allows."""


class State(NamedTuple):
    """The state of a warpgroup's queries between two blocks of keys."""

    sum_MD: jax.Array  # of the products with v, without the last block
    maximum_M: jax.Array
    sums: tuple[jax.Array, ...]  # of the weights; and what rounding took from it
    weights_MN: jax.Array  # of the last block, in v's dtype


def step(scores_MN: jax.Array, c: float, maximum_M: jax.Array, *sums: jax.Array) -> tuple[jax.Array, ...]:
    """`2^(c s - maximum)` for the scores of a block.

    Returns:
      (weights, maximum, the factor of sums from before, then as many sums as given).
    """
    new_maximum_M = jnp.maximum(maximum_M, scores_MN.max(axis=1) * c)
    factor_M = jnp.exp2(maximum_M - new_maximum_M)
    weights_MN = jnp.exp2(scores_MN * c - over_rows(new_maximum_M, scores_MN))
    former_M, added_M = sums[0] * factor_M, weights_MN.sum(axis=1)
    if len(sums) == 1:
        return weights_MN, new_maximum_M, factor_M, former_M + added_M
    added_M += sums[1] * factor_M
    total_M = former_M + added_M
    return weights_MN, new_maximum_M, factor_M, total_M, added_M - (total_M - former_M)
