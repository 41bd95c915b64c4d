"""Loss by the length of context used: the same tokens predicted from the last c tokens before them, for growing c.

Loss by position compares the beginnings of documents with their ends; this compares the same targets with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lcjax.evaluate.excerpts import Excerpt, score
from lcjax.evaluate.lengths import contexts_up_to
from lcjax.model import Llama

# Targets of a document, at most.
_TARGETS = 256


class ContextLoss(NamedTuple):
    """The mean loss in nats of `tokens` targets that saw at most `context` tokens and at least three quarters of them."""

    context: int
    tokens: int
    loss: float
    perplexity: float


def loss_by_context(
    model: Llama,
    documents: Sequence[np.ndarray],
    max_seq_length: int,
    on_row: Callable[[float], None] = lambda share: None,
) -> list[ContextLoss]:
    """Scores the same targets, at most 256 a document, with every context that is a power of two from 16 to `max_seq_length`.

    A context of c tokens predicts the c / 4 targets at its end, so that a row is read for many targets and not for one.

    Args:
      documents: int32 tokens, each more than the longest context.
    """
    contexts = contexts_up_to(max_seq_length)
    longest = contexts[-1]
    targets = min(_TARGETS, longest // 4)
    excerpts, context_N = [], []
    for context in contexts:
        stride = min(targets, context // 4)
        for document in documents:
            for stop in range(longest - targets + stride, longest + 1, stride):
                excerpts.append(Excerpt.ending(document, stop, context, stride))
                context_N.append(context)
    losses_N = score(model, excerpts, max_seq_length, on_row).losses_N
    tokens = targets * len(documents)
    means = {context: float(losses_N[np.array(context_N) == context].sum()) / tokens for context in contexts}
    return [ContextLoss(context, tokens, loss, math.exp(loss)) for context, loss in means.items()]
