"""Held-out loss by position: how well a token is predicted, by the length of text before it.

A model that uses long context predicts later tokens better. Positions are grouped into buckets that
end at powers of two, so each contains about as many tokens as all before it.

Shapes: B sequences, T tokens, N buckets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lcjax import step
from lcjax.config.rope import LONGEST
from lcjax.model import Llama
from lcjax.ops.cross_entropy import IGNORE
from lcjax.parallel.devices import ON_ONE, Devices
from lcjax.step.on_devices import on_all_devices

# The first positions of a document share a bucket; separate buckets would be means of few tokens.
FIRST_STOP = 16
# The start of each bucket: 0, 16, 32, ... The last one contains all later positions.
_STARTS_N = np.array([0] + [2**n for n in range(FIRST_STOP.bit_length() - 1, (LONGEST - 1).bit_length())])


class Bucket(NamedTuple):
    """Positions start, ..., stop - 1; `loss` is the mean of their tokens' losses, in nats."""

    start: int
    stop: int
    tokens: int
    loss: float

    @property
    def label(self) -> str:
        """The range of positions in words."""
        return f"{self.start:,} to {self.stop - 1:,}"


@dataclasses.dataclass(frozen=True)
class LossByPosition:
    """Sums of losses by position; two objects can be added.

    The position is that of the token that is read when the next one is predicted.

    Attributes:
      sums_N: float64, nats.
      counts_N: int64, tokens with a label.
    """

    sums_N: np.ndarray
    counts_N: np.ndarray

    @classmethod
    def of(cls, losses_BT: np.ndarray, labels_BT: np.ndarray, positions_BT: np.ndarray) -> LossByPosition:
        """From losses as of `lcjax.step.token_scores`, and labels and positions of the batch."""
        counted = np.asarray(labels_BT) != IGNORE
        # Positions are the batch's; those of a packed document begin at 0.
        bucket = np.searchsorted(_STARTS_N, np.asarray(positions_BT)[counted], side="right") - 1
        losses = np.asarray(losses_BT, np.float64)[counted]
        return cls(
            np.bincount(bucket, weights=losses, minlength=len(_STARTS_N)), np.bincount(bucket, minlength=len(_STARTS_N))
        )

    @classmethod
    def none(cls) -> LossByPosition:
        """The sums of no tokens."""
        return cls(np.zeros(len(_STARTS_N)), np.zeros(len(_STARTS_N), np.int64))

    def __add__(self, other: LossByPosition) -> LossByPosition:
        return LossByPosition(self.sums_N + other.sums_N, self.counts_N + other.counts_N)

    @property
    def total(self) -> float:
        """Total loss of all tokens, in nats."""
        return float(self.sums_N.sum())

    @property
    def tokens(self) -> int:
        """The number of tokens with a label."""
        return int(self.counts_N.sum())

    @property
    def mean(self) -> float:
        """Nats per token; nan if there are no tokens."""
        return self.beyond(0)

    def beyond(self, position: int) -> float:
        """Nats per token in the buckets that begin at `position` or later; nan if there is none."""
        later_N = position <= _STARTS_N
        tokens = int(self.counts_N[later_N].sum())
        return float(self.sums_N[later_N].sum()) / tokens if tokens else float("nan")

    def buckets(self) -> list[Bucket]:
        """The buckets that contain a token, the first positions first."""
        stops_N = np.append(_STARTS_N[1:], 2 * _STARTS_N[-1])
        return [
            Bucket(int(start), int(stop), int(count), float(total / count))
            for start, stop, count, total in zip(_STARTS_N, stops_N, self.counts_N, self.sums_N, strict=True)
            if count
        ]

    def means(self) -> dict[str, float]:
        """Nats per token, by the position at which the bucket begins, for JSON."""
        return {str(bucket.start): bucket.loss for bucket in self.buckets()}


def loss_by_position(model: Llama, batches: Iterable[Mapping[str, Any]]) -> LossByPosition:
    """The loss of every token of `batches`, one forward pass each, on all devices of the machine.

    Args:
      model: with or without an adapter.
      batches: int32 arrays [B, T] with the keys `lcjax.step.BATCH_KEYS`, as from
        `lcjax.data.evaluation_batches`. Each new shape is compiled. Labels IGNORE do not count.
    """
    result, scores = LossByPosition.none(), {}
    for batch in batches:
        tokens = batch["tokens"].shape[1]
        if tokens not in scores:
            scores[tokens] = _scores_on_all_devices(model, tokens)
        placed, token_scores, devices = scores[tokens]
        result += batch_loss_by_position(placed, batch, token_scores, devices)
    return result


def _scores_on_all_devices(model: Llama, tokens: int) -> tuple[Llama, jax.stages.Wrapped, Devices]:
    placed, devices = on_all_devices(model, tokens)
    return placed, step.jit_token_scores(devices), devices


def batch_loss_by_position(
    model: Llama, batch: Mapping[str, Any], token_scores: jax.stages.Wrapped, devices: Devices = ON_ONE
) -> LossByPosition:
    """The loss of every token of one batch, by `token_scores` of `lcjax.step.jit_token_scores`.

    `devices` form the mesh of the model's settings.
    """
    scores_BT = token_scores(model, devices.divide_rows({name: batch[name] for name in step.BATCH_KEYS}))
    labels_BT, positions_BT = (devices.in_order(batch[name]) for name in ("labels", "positions"))
    return LossByPosition.of(scores_BT.losses, labels_BT, positions_BT)
