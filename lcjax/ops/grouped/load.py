"""How much each expert is used, and the auxiliary loss that balances it.

Shapes: N tokens, C choices of a token, E experts.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ExpertLoad:
    """Sums over tokens and layers, float32.

    Attributes:
      choices_E: how many tokens have chosen each expert.
      probability_E: the sum of the router's probabilities of each expert, the softmax of its
        logits over all experts.
    """

    choices_E: jax.Array
    probability_E: jax.Array

    @classmethod
    def zeros(cls, experts: int) -> ExpertLoad:
        return cls(jnp.zeros(experts, jnp.float32), jnp.zeros(experts, jnp.float32))

    def plus(self, logits_NE: jax.Array, expert_NC: jax.Array, counted_N: jax.Array) -> ExpertLoad:
        """The load with more tokens.

        Args:
          logits_NE: the router's, float32.
          expert_NC: the chosen experts, int32.
          counted_N: bool; the other tokens are padding.
        """
        counted_N1 = counted_N[:, None]
        # A sum of integers, because a sum of ones in float32 ends at 2^24.
        chosen_NCE = expert_NC[..., None] == jnp.arange(len(self.choices_E), dtype=expert_NC.dtype)[None, None]
        choices_E = jnp.sum(chosen_NCE & counted_N1[..., None], axis=(0, 1), dtype=jnp.int32)
        probability_NE = jnp.where(counted_N1, jax.nn.softmax(logits_NE, axis=-1), 0)
        return ExpertLoad(
            self.choices_E + choices_E.astype(jnp.float32),
            self.probability_E + probability_NE.sum(axis=0),
        )


def load_balancing_loss(load: ExpertLoad, tokens: jax.Array) -> jax.Array:
    """`E sum over e of f_e P_e`, a float32 scalar; C for a perfect balance of C choices.

    f_e is the number of tokens that have chosen expert e, and P_e is the sum of its probabilities,
    both divided by `tokens`. Choices are not differentiable, so the gradient is that of P.

    Args:
      load: of all tokens and layers.
      tokens: their number, a token counted once for each layer.

    Source: Fedus et al., arXiv 2101.03961, equations 4 to 6. As in transformers, the sums are over
    all layers together.
    """
    share_E = lax.stop_gradient(load.choices_E) / tokens
    return len(share_E) * jnp.sum(share_E * (load.probability_E / tokens))
