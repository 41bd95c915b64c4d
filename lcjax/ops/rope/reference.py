"""The specification of RoPE in plain jax.numpy, in the dtype of its inputs.

Tests run it in float64.

Shapes: B batch, T tokens, H heads, D head_dim, F rotated pairs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rope(x_BTHD: jax.Array, cos_BTF: jax.Array, sin_BTF: jax.Array) -> jax.Array:
    """Rotates the pairs (x[i], x[i + F]) of every head by the angles of the tables.

    The tables, which include the attention factor, are those of `lcjax.ops.rope.rope_tables`.
    """
    first, second = jnp.split(x_BTHD, 2, axis=-1)
    cos, sin = cos_BTF[:, :, None, :], sin_BTF[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
