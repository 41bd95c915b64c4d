"""The cosines and sines of the angles at given positions.

Shapes: B batch, T tokens, F rotated pairs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rope_tables(
    positions_BT: jax.Array, inverse_frequencies_F: jax.Array, attention_factor: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """`attention_factor` times the cosine and the sine of `position * frequency`.

    Both are float32 [B, T, F]. Positions are integers of any dtype.
    """
    angles_BTF = positions_BT.astype(jnp.float32)[..., None] * inverse_frequencies_F[None, None, :]
    cos_BTF, sin_BTF = jnp.cos(angles_BTF), jnp.sin(angles_BTF)
    return (cos_BTF, sin_BTF) if attention_factor == 1.0 else (cos_BTF * attention_factor, sin_BTF * attention_factor)
