"""RMSNorm."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

Tree = dict[str, Any]


class RMSNorm(nnx.Module):
    """`weight * x / sqrt(mean(x^2) + eps)`; the mean and the division are float32.

    Source: Zhang & Sennrich, arXiv 1910.07467.
    """

    def __init__(self, tree: Tree, eps: float):
        self.weight = nnx.Param(tree["weight"])
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        # Use dot products, whose gradients are dot products too. On a CPU, XLA's sum of `a * b`
        # takes six times as long as their dot product.
        product = functools.partial(jnp.einsum, precision="highest")
        mean_square = product("...d,...d->...", x32, x32) / x.shape[-1]
        normalised = product("...d,...->...d", x32, lax.rsqrt(mean_square + self.eps))
        return jnp.expand_dims(self.weight[...], range(x.ndim - 1)) * normalised.astype(x.dtype)
