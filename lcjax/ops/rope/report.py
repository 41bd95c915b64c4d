"""A report of what a change of RoPE does, in numbers that a user can check before training.

Shapes: F rotated pairs.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lcjax.config import LlamaConfig
from lcjax.config.rope import attention_factor
from lcjax.ops.rope.frequencies import inverse_frequencies


@dataclasses.dataclass(frozen=True)
class Waves:
    """A config's RoPE for sequences of `tokens` tokens, compared with the trained context."""

    config: LlamaConfig
    tokens: int
    trained: LlamaConfig

    @property
    def lengths_F(self) -> np.ndarray:
        """Tokens per turn of each pair, float64 [F]."""
        return 2.0 * math.pi / np.asarray(inverse_frequencies(self.config, self.tokens), np.float64)

    @property
    def beyond_F(self) -> np.ndarray:
        """bool [F]: pairs whose turn is longer than the trained context."""
        return self.lengths_F > self.trained.max_position_embeddings

    @property
    def unseen_F(self) -> np.ndarray:
        """bool [F]: pairs that reach angles that did not occur in training.

        Training covered less than one turn of such a pair, and now the pair turns further.
        """
        context = self.trained.max_position_embeddings
        shown_F = context / Waves(self.trained, context, self.trained).lengths_F
        # The tolerance covers differences in the last bits of a frequency.
        return (shown_F < 1.0) & (self.tokens / self.lengths_F > shown_F * (1.0 + 1e-5))


def report(before: LlamaConfig, after: LlamaConfig, tokens: int) -> list[str]:
    """The lines that `scripts/long_context_tool.py` prints.

    They show the settings before and after, then each slow pair.

    Args:
      before: the model as it was trained.
      after: the model as it will be used, with sequences of `tokens` tokens.
    """
    waves = Waves(before, tokens, before), Waves(after, tokens, before)
    context, pairs = before.max_position_embeddings, len(waves[0].lengths_F)
    rows = [
        ("", "before", "after"),
        ("context, tokens", *(f"{c.max_position_embeddings:,}" for c in (before, after))),
        ("kind", *(c.rope_scaling.rope_type for c in (before, after))),
        ("base", *(f"{c.rope_theta:,.0f}" for c in (before, after))),
        ("factor", *(f"{c.rope_scaling.factor:g}" for c in (before, after))),
        ("attention factor", *(f"{attention_factor(c):.4g}" for c in (before, after))),
        (f"of {pairs} pairs, longer than {context:,} tokens", *(f"{w.beyond_F.sum()}" for w in waves)),
        (f"at angles unseen in training, at {tokens:,}", *(f"{w.unseen_F.sum()}" for w in waves)),
    ]
    lines = [f"{name:48} {old:>14} {new:>14}" for name, old, new in rows]
    slow = np.flatnonzero(waves[0].beyond_F | waves[1].beyond_F)
    for pair in slow:
        old, new = (w.lengths_F[pair] for w in waves)
        lines.append(f"{f'pair {pair}, tokens a turn':48} {old:14,.0f} {new:14,.0f}")
    return lines
