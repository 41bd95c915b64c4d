"""Loss by context length: the same tokens, predicted from the last c tokens, for growing c.

Loss by position compares the beginnings of documents with their ends. This compares the same
targets with each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lcjax.evaluate.excerpts import Excerpt, score
from lcjax.evaluate.lengths import contexts_up_to
from lcjax.model import Llama

# The most targets in a document.
_TARGETS = 256


class ContextLoss(NamedTuple):
    """The mean loss in nats of `tokens` targets, each given from 3/4 to all of `context` tokens."""

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
    """Scores the same targets with every context that is a power of two from 16 up.

    There are at most 256 targets in a document, and the largest context is at most
    `max_seq_length`. A context of c tokens predicts the c / 4 targets at its end, so that one row
    scores many targets.

    Args:
      documents: int32 tokens, each with more tokens than the longest context.
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
