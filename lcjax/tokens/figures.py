"""Lengths of documents, and the result of packing them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lcjax.data import TokenizedCorpus, pack


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The documents of start, ..., stop - 1 tokens."""

    start: int
    stop: int
    documents: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class Windows:
    """A corpus in windows of one length; shares are in [0, 1].

    Attributes:
      max_seq_length: T, tokens in a window.
      count: windows, each one training sequence.
      packed_share: of the tokens, those that share their window with another document.
      cut_share: of the tokens, those of documents longer than T, which are cut into several
        windows.
      padded_share: of all positions, those without a token.
      documents_per_window: documents, or parts of one, in a window on average.
    """

    max_seq_length: int
    count: int
    packed_share: float
    cut_share: float
    padded_share: float
    documents_per_window: float


@dataclasses.dataclass(frozen=True)
class TokenFigures:
    """The numbers of a corpus; `learned` counts the tokens with a loss.

    `longest` has pairs (name, tokens), the longest document first.
    """

    documents: int
    tokens: int
    learned: int
    median: int
    longest: tuple[tuple[str, int], ...]
    histogram: tuple[Bucket, ...]
    windows: Windows

    def as_json(self) -> dict[str, Any]:
        """The numbers as JSON."""
        return dataclasses.asdict(self)


def token_figures(corpus: TokenizedCorpus, max_seq_length: int, longest: int = 10) -> TokenFigures:
    """Counts; `longest` is the number of documents to list."""
    lengths = corpus.lengths
    order: list[int] = np.argsort(-lengths, kind="stable")[:longest].tolist()
    return TokenFigures(
        documents=len(corpus),
        tokens=len(corpus.tokens),
        learned=len(corpus.tokens) if corpus.learned is None else int(np.count_nonzero(corpus.learned)),
        median=int(np.median(lengths)),
        longest=tuple((corpus.names[i], int(lengths[i])) for i in order),
        histogram=histogram(lengths),
        windows=windows(lengths, max_seq_length),
    )


def windows(lengths: np.ndarray, max_seq_length: int) -> Windows:
    """Packs documents of these lengths as training does."""
    plan = pack(lengths, max_seq_length)
    pieces_of_row = np.diff(plan.row_offsets)
    sizes = plan.pieces[:, 2] - plan.pieces[:, 1]
    shares_row = np.repeat(pieces_of_row > 1, pieces_of_row)
    tokens = max(1, int(lengths.sum()))
    return Windows(
        max_seq_length=max_seq_length,
        count=len(plan),
        packed_share=float(sizes[shares_row].sum() / tokens),
        cut_share=float(lengths[lengths > max_seq_length].sum() / tokens),
        padded_share=plan.padding_share,
        documents_per_window=float(np.mean(pieces_of_row)) if len(plan) else 0.0,
    )


def histogram(lengths: np.ndarray) -> tuple[Bucket, ...]:
    """Documents by length, in buckets between powers of two; no empty ones at the ends."""
    exponents = np.frexp(np.maximum(lengths, 1))[1] - 1
    buckets = []
    for exponent in range(int(exponents.min()), int(exponents.max()) + 1):
        inside = lengths[exponents == exponent]
        buckets.append(Bucket(2**exponent, 2 ** (exponent + 1), len(inside), int(inside.sum())))
    return tuple(buckets)


def short(tokens: float) -> str:
    """A round number of tokens in the usual form: 512, 32K, 1M."""
    for unit, size in (("M", 2**20), ("K", 2**10)):
        if tokens >= size:
            return f"{tokens / size:.4g}{unit}"
    return f"{tokens:g}"
