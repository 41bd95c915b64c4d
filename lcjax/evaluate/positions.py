"""Held-out loss by position: how well a token is predicted, by how much of its document came before.

A model that uses long context predicts later tokens better. Positions fall into buckets that end at powers of two, so that each
holds about as many tokens as all before it.

Shapes: B sequences, T tokens, N buckets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lcjax import step
from lcjax.config.rope import LONGEST
from lcjax.model import Llama
from lcjax.ops.cross_entropy import IGNORE

# The first positions of a document share a bucket: apart, each would be a mean of a few tokens.
FIRST_STOP = 16
# Where each bucket begins: 0, 16, 32, ... The last one takes all positions beyond.
_STARTS_N = np.array([0] + [2**n for n in range(FIRST_STOP.bit_length() - 1, LONGEST.bit_length() - 1)])


class Bucket(NamedTuple):
    """Positions start, ..., stop - 1; `loss` is the mean of their tokens' losses, in nats."""

    start: int
    stop: int
    tokens: int
    loss: float

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.start:,} to {self.stop - 1:,}"


@dataclasses.dataclass(frozen=True)
class LossByPosition:
    """Sums of losses by the position of the token that is read when the next one is predicted; two of them add up.

    Attributes:
      sums_N: float64, nats.
      counts_N: int64, tokens with a label.
    """

    sums_N: np.ndarray
    counts_N: np.ndarray

    @classmethod
    def of(cls, losses_BT: np.ndarray, labels_BT: np.ndarray, positions_BT: np.ndarray) -> LossByPosition:
        """What `lcjax.step.token_scores` gave of a batch, its labels, and its positions in their documents."""
        counted = np.asarray(labels_BT) != IGNORE
        # The position is the batch's own: a packed document's begin at 0.
        bucket = np.searchsorted(_STARTS_N, np.asarray(positions_BT)[counted], side="right") - 1
        losses = np.asarray(losses_BT, np.float64)[counted]
        return cls(
            np.bincount(bucket, weights=losses, minlength=len(_STARTS_N)), np.bincount(bucket, minlength=len(_STARTS_N))
        )

    @classmethod
    def none(cls) -> LossByPosition:
        """Of no tokens."""
        return cls(np.zeros(len(_STARTS_N)), np.zeros(len(_STARTS_N), np.int64))

    def __add__(self, other: LossByPosition) -> LossByPosition:
        return LossByPosition(self.sums_N + other.sums_N, self.counts_N + other.counts_N)

    @property
    def total(self) -> float:
        """Nats of all tokens."""
        return float(self.sums_N.sum())

    @property
    def tokens(self) -> int:
        """All tokens with a label."""
        return int(self.counts_N.sum())

    @property
    def mean(self) -> float:
        """Nats a token; nan of no tokens."""
        return self.beyond(0)

    def beyond(self, position: int) -> float:
        """Nats a token in the buckets that begin at `position` or later; nan where there are no tokens."""
        later_N = position <= _STARTS_N
        tokens = int(self.counts_N[later_N].sum())
        return float(self.sums_N[later_N].sum()) / tokens if tokens else float("nan")

    def buckets(self) -> list[Bucket]:
        """The buckets that hold a token, the first positions first."""
        stops_N = np.append(_STARTS_N[1:], LONGEST)
        return [
            Bucket(int(start), int(stop), int(count), float(total / count))
            for start, stop, count, total in zip(_STARTS_N, stops_N, self.counts_N, self.sums_N, strict=True)
            if count
        ]

    def means(self) -> dict[str, float]:
        """Nats a token by the position at which the bucket begins, for JSON."""
        return {str(bucket.start): bucket.loss for bucket in self.buckets()}


def loss_by_position(model: Llama, batches: Iterable[Mapping[str, Any]]) -> LossByPosition:
    """The loss of every token of `batches`, one forward pass each.

    Args:
      model: with or without an adapter.
      batches: int32 arrays [B, T] by the names in `lcjax.step.BATCH_KEYS`, of one shape, else each shape is compiled; what
        `lcjax.data.evaluation_batches` gives. Labels IGNORE do not count.
    """
    token_scores = step.jit_token_scores()
    result = LossByPosition.none()
    for batch in batches:
        scores_BT = token_scores(model, {name: batch[name] for name in step.BATCH_KEYS})
        result += LossByPosition.of(scores_BT.losses, batch["labels"], batch["positions"])
    return result
