"""RMSNorm."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lcjax.config import LlamaConfig

Tree = dict[str, Any]


class RMSNorm(nnx.Module):
    """`(offset + weight) * x / sqrt(mean(x^2) + eps)`; the mean and the division are float32.

    The family of the model gives the offset, and whether the product is float32 too.

    Source: Zhang & Sennrich, arXiv 1910.07467.
    """

    def __init__(self, tree: Tree, config: LlamaConfig):
        self.weight = nnx.Param(tree["weight"])
        self.eps = config.rms_norm_eps
        self.offset, self.in_float32 = config.family.norms.offset, config.family.norms.in_float32

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        # Use dot products, whose gradients are dot products too. On a CPU, XLA's sum of `a * b`
        # takes six times as long as their dot product.
        product = functools.partial(jnp.einsum, precision="highest")
        mean_square = product("...d,...d->...", x32, x32) / x.shape[-1]
        normalised = product("...d,...->...d", x32, lax.rsqrt(mean_square + self.eps))
        weight = jnp.expand_dims(self.weight[...], range(x.ndim - 1))
        if self.in_float32:
            return ((self.offset + weight.astype(jnp.float32)) * normalised).astype(x.dtype)
        return weight * normalised.astype(x.dtype)
