"""Sources mixed by weight: the source of each next row."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence

import grain
import numpy as np

from lcjax.config.training import check_weights
from lcjax.data.packing import PackingPlan, nothing_learned, pack
from lcjax.errors import InputError

# Weights are compared as integers, so that the proportions are exact on every machine.
_SCALE = 2**32


@dataclasses.dataclass(frozen=True)
class Mixture:
    """S sources of rows and how they alternate.

    A weight is a share of the tokens. Sources differ in how full their rows are. So the share of
    source s in the rows is `(w_s / f_s) / sum_r (w_r / f_r)`, where f is the mean number of tokens
    in a row of the source. Among any first n rows, the number from source s differs from its share
    by at most 1 + the number of sources before it. A source whose rows are used up starts again, in
    another order, so none runs out. An epoch is one pass over as many rows as the plan has.

    Attributes:
      names: of the sources, for messages.
      row_bounds: [S + 1]; source s has the plan's rows row_bounds[s], ..., row_bounds[s + 1] - 1.
      weights: [S], with sum 1.
      turns: [S], the sources' shares of the rows, as integers.
    """

    names: tuple[str, ...]
    row_bounds: tuple[int, ...]
    weights: tuple[float, ...]
    turns: tuple[int, ...]

    def selection(self) -> grain.transforms.DatasetSelectionMap:
        """A grain selection: from the index of a row to (source, index within the source)."""
        return _Selection(self.turns)

    def summary(self) -> list[str]:
        """One line for each source: its weight, rows, and passes over them per epoch."""
        epoch, turns = self.row_bounds[-1], sum(self.turns)
        return [
            f"{name}: {weight:.1%} of the tokens, {stop - start:,} rows, "
            f"{epoch * turn / turns / (stop - start):.2f} passes per epoch"
            for name, weight, turn, (start, stop) in zip(
                self.names, self.weights, self.turns, itertools.pairwise(self.row_bounds), strict=True
            )
        ]


def pack_mixture(
    lengths: np.ndarray,
    max_seq_length: int,
    sources: Sequence[np.ndarray],
    weights: Sequence[float],
    names: Sequence[str],
    is_learned: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[PackingPlan, Mixture]:
    """Packs each source's documents into separate rows.

    Args:
      lengths: [N] tokens of each document.
      max_seq_length: T, tokens in a row.
      sources: the indices of each source's documents.
      weights: one for each source, in any unit.
      names: of the sources.
      is_learned: which windows to use; see `pack`.

    Raises:
      InputError: a source has no documents to learn from, or there is not one positive weight for
        each source.
    """
    check_weights(weights, len(sources))
    plans = [pack(lengths, max_seq_length, documents, is_learned) for documents in sources]
    for name, plan in zip(names, plans, strict=True):
        if plan.num_unlearned and not len(plan):
            raise InputError(f"{name}: {nothing_learned(plan)}")
        if not len(plan):
            raise InputError(
                f"{name} has no document to train on for its weight in --data-weights; add "
                "documents, or hold none out (--eval-fraction 0)"
            )
    row_offsets = [np.zeros(1, dtype=np.int64)]
    for plan in plans:
        row_offsets.append(plan.row_offsets[1:] + row_offsets[-1][-1])
    pieces = np.concatenate([plan.pieces for plan in plans])
    num_unlearned = sum(plan.num_unlearned for plan in plans)
    whole = PackingPlan(max_seq_length, np.concatenate(row_offsets), pieces, num_unlearned)
    bounds = tuple(itertools.accumulate((len(plan) for plan in plans), initial=0))
    shares = [weight / sum(weights) for weight in weights]
    rates = [share * len(plan) / plan.num_tokens for share, plan in zip(shares, plans, strict=True)]
    turns = tuple(max(1, round(_SCALE * rate / sum(rates))) for rate in rates)
    return whole, Mixture(tuple(names), bounds, tuple(shares), turns)


class _Selection(grain.transforms.DatasetSelectionMap):
    """Spreads the first source's rows as evenly as possible, then recursively the others."""

    def __init__(self, turns: tuple[int, ...]):
        self._turns = turns

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        # The numbers of rows, before the index and including it, from this source and the later
        # ones.
        before, after = index, index + 1
        left = sum(self._turns)
        for source, turns in enumerate(self._turns[:-1]):
            others = left - turns
            others_before, others_after = before * others // left, after * others // left
            if others_before == others_after:
                return source, before - others_before
            before, after, left = others_before, others_after, others
        return len(self._turns) - 1, before
