"""Pieces of text of which only the last tokens are scored, several in a row.

Shapes: T tokens of a row, N excerpts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lcjax import step
from lcjax.data import IGNORE, PAD_ID, pack
from lcjax.model import Llama


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """Tokens to read, and the targets that the last of them should predict.

    Attributes:
      tokens: int32 [n].
      targets: int32 [s], s <= n: `targets[-1]` follows the last token, `targets[-2]` is the last
        token, and so on.
    """

    tokens: np.ndarray
    targets: np.ndarray

    @classmethod
    def ending(cls, document: np.ndarray, stop: int, read: int, scored: int) -> Excerpt:
        """The tokens stop - read, ..., stop - 1 of a document, with the last `scored` targets."""
        return cls(document[stop - read : stop], document[stop - scored + 1 : stop + 1])


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of the excerpts: summed loss in nats, float64 [N], and correct tokens, int64 [N].

    A token is correct if it is the most likely one.
    """

    losses_N: np.ndarray
    hits_N: np.ndarray


def rows_of(excerpts: Sequence[Excerpt], max_seq_length: int) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Batches of one row [1, T], with the keys `lcjax.step.BATCH_KEYS`.

    Each comes with the index of each token's excerpt. No excerpt may be longer than T; excerpts do
    not see each other.
    """
    plan = pack(np.array([len(excerpt.tokens) for excerpt in excerpts]), max_seq_length)
    for row in range(len(plan)):
        blank = {"tokens": PAD_ID, "labels": IGNORE, "positions": 0, "segment_ids": 0, "excerpts": 0}
        arrays = {name: np.full((1, max_seq_length), value, np.int32) for name, value in blank.items()}
        at = 0
        for segment, piece in enumerate(plan.row(row), start=1):
            excerpt = excerpts[piece.document]
            stop = at + len(excerpt.tokens)
            arrays["tokens"][0, at:stop] = excerpt.tokens
            arrays["labels"][0, stop - len(excerpt.targets) : stop] = excerpt.targets
            arrays["positions"][0, at:stop] = np.arange(stop - at)
            arrays["segment_ids"][0, at:stop] = segment
            arrays["excerpts"][0, at:stop] = piece.document
            at = stop
        # Padding is a separate document after all others.
        arrays["positions"][0, at:] = np.arange(max_seq_length - at)
        arrays["segment_ids"][0, at:] = len(excerpts) + 1
        yield arrays, arrays.pop("excerpts")


def score(
    model: Llama, excerpts: Sequence[Excerpt], max_seq_length: int, on_row: Callable[[float], None] = lambda share: None
) -> Scores:
    """Scores every excerpt in rows of `max_seq_length` tokens.

    `on_row` is called with the completed share.
    """
    losses_N, hits_N = np.zeros(len(excerpts)), np.zeros(len(excerpts), np.int64)
    token_scores = step.jit_token_scores()
    scored, total = 0, sum(len(excerpt.targets) for excerpt in excerpts)
    for batch, excerpt_1T in rows_of(excerpts, max_seq_length):
        scores_1T = token_scores(model, batch)
        counted = batch["labels"] != IGNORE
        np.add.at(losses_N, excerpt_1T[counted], np.asarray(scores_1T.losses, np.float64)[counted])
        np.add.at(hits_N, excerpt_1T[counted], np.asarray(scores_1T.hits)[counted])
        scored += int(counted.sum())
        on_row(scored / total)
    return Scores(losses_N, hits_N)
