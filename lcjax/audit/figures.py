"""What an audit finds, in figures."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lcjax.audit.duplicates import Duplicates, near_duplicates
from lcjax.audit.reuse import Reuse, reuse_by_distance
from lcjax.data import TokenizedCorpus
from lcjax.tokens.figures import TokenFigures, token_figures

# The length of a long document, where the requested context is at least twice as long.
LONG = 32768


@dataclasses.dataclass(frozen=True)
class AuditFigures:
    """Of a corpus, or of documents drawn from it.

    Attributes:
      corpus: lengths and windows of all of it.
      long: tokens, beyond which a document is called long: LONG, or half of a shorter context.
      long_documents, long_tokens: the shares of documents longer than that, and of tokens in them.
      sampled_tokens: what reuse and near-duplicates were counted on.
      reuse: by distance.
      duplicates: near-duplicates.
    """

    corpus: TokenFigures
    long: int
    long_documents: float
    long_tokens: float
    sampled_tokens: int
    reuse: tuple[Reuse, ...]
    duplicates: Duplicates

    def as_json(self) -> dict[str, Any]:
        """The same as JSON, with the shares that the tables show."""
        content = dataclasses.asdict(self)
        content["reuse"] = [dataclasses.asdict(bucket) | {"share": bucket.share} for bucket in self.reuse]
        return content


def audit(corpus: TokenizedCorpus, max_seq_length: int, max_tokens: int) -> AuditFigures:
    """Counts everything; reuse and duplicates on at most about max_tokens, in whole documents drawn at random, always the same."""
    lengths = corpus.lengths
    long = min(LONG, max_seq_length // 2)
    is_long = lengths > long
    sample = _sample(corpus, max_tokens)
    return AuditFigures(
        corpus=token_figures(corpus, max_seq_length),
        long=long,
        long_documents=float(np.mean(is_long)),
        long_tokens=float(lengths[is_long].sum() / max(1, lengths.sum())),
        sampled_tokens=len(sample.tokens),
        reuse=tuple(reuse_by_distance(sample, max_seq_length)),
        duplicates=near_duplicates(sample),
    )


def _sample(corpus: TokenizedCorpus, max_tokens: int) -> TokenizedCorpus:
    lengths = corpus.lengths
    if lengths.sum() <= max_tokens:
        return corpus
    order = np.random.RandomState(0).permutation(len(corpus))
    count = max(1, int(np.searchsorted(np.cumsum(lengths[order]), max_tokens)))
    chosen: list[int] = np.sort(order[:count]).tolist()
    offsets = np.concatenate([[0], np.cumsum(lengths[chosen])])
    tokens = np.concatenate([corpus.document(i) for i in chosen])
    return TokenizedCorpus(tokens, offsets, [corpus.names[i] for i in chosen])
