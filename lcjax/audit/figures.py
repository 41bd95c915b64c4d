"""The numbers of an audit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lcjax.audit.duplicates import Duplicates, near_duplicates
from lcjax.audit.reuse import Reuse, reuse_by_distance
from lcjax.data import TokenizedCorpus
from lcjax.tokens.figures import TokenFigures, token_figures

# The length of a long document, if the requested context is at least twice as long.
LONG = 32768


@dataclasses.dataclass(frozen=True)
class AuditFigures:
    """The numbers of a corpus, or of documents sampled from it.

    Attributes:
      corpus: lengths and windows of the whole corpus.
      long: the number of tokens above which a document counts as long: LONG, or half of a shorter
        context.
      long_documents, long_tokens: the shares of long documents, and of the tokens in them.
      sampled_tokens: the number of tokens on which reuse and near-duplicates were counted.
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
        """The numbers as JSON, with the shares that the tables show."""
        content = dataclasses.asdict(self)
        content["reuse"] = [dataclasses.asdict(bucket) | {"share": bucket.share} for bucket in self.reuse]
        return content


def audit(corpus: TokenizedCorpus, max_seq_length: int, max_tokens: int) -> AuditFigures:
    """Counts everything; reuse and duplicates on a sample of about `max_tokens` tokens.

    The sample consists of whole documents drawn at random, with a fixed seed.
    """
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
