"""How much text repeats from far before, and no nearer, compared with chance.

Shapes: P n-grams of the corpus, one ending at every token but the first n - 1 of each document.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from lcjax.data import TokenizedCorpus
from lcjax.data.hashing import mix

NGRAM = 4
NEAREST = 1024


@dataclasses.dataclass(frozen=True)
class Reuse:
    """Reuse at the distances start, ..., stop - 1, in tokens.

    Attributes:
      start, stop: of the bucket.
      tokens: tokens with at least `start` tokens of their document before them.
      observed: how many of them end a rare n-gram whose nearest earlier occurrence in the document
        is at this distance.
      expected: the expected number if the text at this distance came from other documents.
    """

    start: int
    stop: int
    tokens: int
    observed: int
    expected: float

    @property
    def excess(self) -> float:
        """Tokens whose reuse is not due to chance; around 0 or below if there is no reuse."""
        return self.observed - self.expected

    @property
    def share(self) -> float:
        """`excess` per token that reaches that far back."""
        return self.excess / self.tokens if self.tokens else 0.0


def bounds(max_seq_length: int) -> list[int]:
    """1024, 2048, ... and max_seq_length: the edges of the buckets."""
    edges = [NEAREST]
    while edges[-1] * 2 < max_seq_length:
        edges.append(edges[-1] * 2)
    return [*edges, max_seq_length] if edges[-1] < max_seq_length else edges


def reuse_by_distance(corpus: TokenizedCorpus, max_seq_length: int, n: int = NGRAM) -> list[Reuse]:
    """Counts repeated n-grams by the distance to their last occurrence.

    An n-gram g is rare for a token of document d if the other documents have fewer than one
    occurrence of it in max_seq_length tokens: r_d(g) = (occurrences of g in other documents) /
    (their tokens), r_d(g) max_seq_length < 1. For the distances a to b and a token with p tokens
    before it whose n-gram did not occur nearer than a,

        expected = 1 - exp(-r_d(g) (min(p, b - 1) - a + 1)),

    the probability that this many tokens of other documents contain it at least once, if its
    occurrences are distributed at random.

    Args:
      corpus: at least one document.
      max_seq_length: the largest distance, in tokens.
      n: tokens of an n-gram.
    """
    grams = _Grams(corpus, n)
    rare = grams.rate * max_seq_length < 1
    distance, before, rate = grams.distance[rare], grams.before[rare], grams.rate[rare]
    buckets = []
    edges = bounds(max_seq_length)
    for start, stop in itertools.pairwise(edges):
        here = (before >= start) & ~((distance > 0) & (distance < start))
        span = np.minimum(before[here], stop - 1) - start + 1
        buckets.append(
            Reuse(
                start,
                stop,
                int(np.maximum(corpus.lengths - start, 0).sum()),
                int(np.count_nonzero((distance[here] > 0) & (distance[here] < stop))),
                float(-np.expm1(-rate[here] * span).sum()),
            )
        )
    return buckets


def repeats_from_afar(corpus: TokenizedCorpus, n: int = NGRAM) -> int:
    """The tokens that end an n-gram that occurred NEAREST or more tokens before, and no nearer.

    All n-grams count, not only rare ones.
    """
    return int(np.count_nonzero(_Grams(corpus, n).distance >= NEAREST))


class _Grams:
    """Statistics of every n-gram, each [P].

    `before` is the number of tokens of its document before its last one. `distance` is the distance
    to its last occurrence in the document, 0 for none. `rate` is its number of occurrences per
    token of the other documents.
    """

    def __init__(self, corpus: TokenizedCorpus, n: int):
        lengths = corpus.lengths
        document_of_token = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        before = np.arange(len(corpus.tokens), dtype=np.int64) - np.repeat(corpus.offsets[:-1], lengths)
        last = np.flatnonzero(before >= n - 1)
        hashes = ngram_hashes(corpus.tokens, n)[last - (n - 1)]
        document = document_of_token[last]
        # Stable, so that occurrences of one n-gram stay in the order of documents and positions.
        order = np.argsort(hashes, kind="stable")
        new_gram = np.diff(hashes[order], prepend=~hashes[order[:1]]) != 0
        new_pair = new_gram | (np.diff(document[order], prepend=-1) != 0)
        occurrences = _sizes(new_gram) - _sizes(new_pair)
        others = len(corpus.tokens) - lengths[document[order]]
        distance = np.where(new_pair, 0, np.diff(last[order], prepend=0))
        self.before = before[last[order]]
        self.distance = distance
        self.rate = occurrences / np.maximum(others, 1)


def _sizes(starts: np.ndarray) -> np.ndarray:
    """For each element the size of its run; `starts` [P] bool marks where runs begin."""
    first = np.flatnonzero(starts)
    sizes = np.diff(first, append=len(starts))
    return np.repeat(sizes, sizes)


def ngram_hashes(tokens: np.ndarray, n: int) -> np.ndarray:
    """[total - n + 1] uint64 hashes of the n tokens that start at each position."""
    count = max(0, len(tokens) - n + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for i in range(n):
        hashes = mix(hashes ^ tokens[i : i + count].astype(np.uint64))
    return hashes
