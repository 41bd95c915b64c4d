"""Selects the next token from logits.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcjax.generate.sampling import Sampling


def next_token(sampling: Sampling, logits_BV: jax.Array, key: jax.Array) -> jax.Array:
    """The most likely token of each row, or one drawn at random; int32 [B]."""
    if sampling.temperature == 0:
        return logits_BV.argmax(axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, truncated_logits(sampling, logits_BV)).astype(jnp.int32)


def truncated_logits(sampling: Sampling, logits_BV: jax.Array) -> jax.Array:
    """The logits to sample from, divided by the temperature; -inf outside the top_p nucleus."""
    scaled_BV = logits_BV / sampling.temperature
    if sampling.top_p == 1:
        return scaled_BV
    falling_BV = -jnp.sort(-scaled_BV, axis=-1)
    probabilities_BV = jax.nn.softmax(falling_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    least_B1 = jnp.where(before_BV < sampling.top_p, falling_BV, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(scaled_BV >= least_B1, scaled_BV, -jnp.inf)
