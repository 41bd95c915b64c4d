"""Rotary position embedding: the frequencies that a config asks for, and the angles at given positions.

Shapes: B batch, T tokens, F = head_dim / 2 rotated pairs.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from lcjax.config import LlamaConfig, RopeScaling

LONGEST = 2**24
"""Tokens of a sequence at most: float32 holds every position up to here, and so every angle."""


def inverse_frequencies(config: LlamaConfig) -> np.ndarray:
    """The rotation of pair i in radians a token, `theta^(-2i / head_dim)`, after scaling.

    Arithmetic is float32 throughout, as in the models' own training code: at position 32,768 a difference in the last
    bit of a frequency is already a thousandth of a radian.

    Returns:
      float32 [F].

    Source: Su et al., RoFormer, arXiv 2104.09864.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    # The power is rounded once from float64; numpy's own float32 power is off by an ulp for some exponents.
    wavenumbers = np.power(np.float64(config.rope_theta), exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1.0) / wavenumbers
    if config.rope_scaling.rope_type == "llama3":
        frequencies = _llama3_scaled(frequencies, config.rope_scaling)
    return frequencies


def rope_tables(positions_BT: jax.Array, inverse_frequencies_F: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of `position * frequency`, float32 [B, T, F] each, for integer positions of any dtype."""
    angles_BTF = positions_BT.astype(jnp.float32)[..., None] * inverse_frequencies_F[None, None, :]
    return jnp.cos(angles_BTF), jnp.sin(angles_BTF)


def _llama3_scaled(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Llama 3.1's scheme: slow waves are stretched by `factor`, fast ones kept, those between blended linearly.

    Source: Llama 3.1 model card and reference code (`apply_scaling`).
    """
    wavelengths = np.float32(2 * math.pi) / frequencies
    context = np.float32(scaling.original_max_position_embeddings)
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    factor = np.float32(scaling.factor)
    keep = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0).astype(np.float32)
    blended = (np.float32(1.0) - keep) * frequencies / factor + keep * frequencies
    return np.where(
        wavelengths > context / low,
        frequencies / factor,
        np.where(wavelengths < context / high, frequencies, blended),
    ).astype(np.float32)
