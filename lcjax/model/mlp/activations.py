"""The activations of families, by transformers' names."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU by its approximation with tanh, in float32. Source: Hendrycks & Gimpel, 1606.08415."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


ACTIVATIONS = {"silu": jax.nn.silu, "gelu_pytorch_tanh": _gelu_tanh}
