"""Which token comes next, given logits.

Shapes: B batch, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lcjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Greedy, or at random.

    Attributes:
      temperature: 0 takes the likeliest token; else logits are divided by it before one is drawn.
      top_p: draw among the fewest tokens whose probabilities reach this sum.

    Raises:
      InputError: a value out of range.

    Source of top_p: Holtzman et al., The Curious Case of Neural Text Degeneration, arXiv 1904.09751.
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"--temperature {self.temperature} is out of range; it must be 0 (greedy) or positive")
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p {self.top_p} is out of range; it must be above 0 and at most 1")

    def choose(self, logits_BV: jax.Array, key: jax.Array) -> jax.Array:
        """int32 [B]."""
        if self.temperature == 0:
            return logits_BV.argmax(axis=-1).astype(jnp.int32)
        return jax.random.categorical(key, self.restricted(logits_BV)).astype(jnp.int32)

    def restricted(self, logits_BV: jax.Array) -> jax.Array:
        """The logits that a token is drawn by, after temperature; -inf where top_p leaves a token out."""
        scaled_BV = logits_BV / self.temperature
        if self.top_p == 1:
            return scaled_BV
        falling_BV = -jnp.sort(-scaled_BV, axis=-1)
        probabilities_BV = jax.nn.softmax(falling_BV, axis=-1)
        before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
        least_B1 = jnp.where(before_BV < self.top_p, falling_BV, jnp.inf).min(axis=-1, keepdims=True)
        return jnp.where(scaled_BV >= least_B1, scaled_BV, -jnp.inf)
