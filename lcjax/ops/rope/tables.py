"""The cosines and sines of the angles at given positions.

Shapes: B batch, T tokens, F rotated pairs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lcjax.ops.rope.turns import cos_and_sin, turns_per_token


def rope_tables(
    positions_BT: jax.Array, inverse_frequencies_F: jax.Array, attention_factor: float | jax.Array = 1.0
) -> tuple[jax.Array, jax.Array]:
    """`attention_factor` times the cosine and the sine of `position * frequency`.

    Both are float32 [B, T, F], and right at every position. Positions are integers that int32
    represents, frequencies float32.
    """
    high_F, low_F = turns_per_token(inverse_frequencies_F)
    cos_BTF, sin_BTF = cos_and_sin(positions_BT.astype(jnp.int32)[..., None], high_F[None, None], low_F[None, None])
    if not isinstance(attention_factor, jax.Array) and attention_factor == 1.0:
        return cos_BTF, sin_BTF
    return cos_BTF * attention_factor, sin_BTF * attention_factor
