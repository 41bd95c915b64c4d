"""Corpora with known reuse."""

from __future__ import annotations

import numpy as np

from lcjax.data import TokenizedCorpus

VOCABULARY = 30_000


def corpus_of(documents) -> TokenizedCorpus:
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64)
    tokens = np.concatenate(documents).astype(np.int32)
    return TokenizedCorpus(tokens, offsets, [f"d{i}" for i in range(len(documents))])


def planted(documents=20, length=16_384, passage=64, distance=6_000, seed=0) -> TokenizedCorpus:
    """Returns random tokens with ten passages per document repeated after `distance` tokens.

    The repetitions are in the second half of the document.
    """
    rng = np.random.default_rng(seed)
    texts = rng.integers(0, VOCABULARY, (documents, length))
    for text in texts:
        for start in range(length // 2, length // 2 + 20 * passage, 2 * passage):
            text[start : start + passage] = text[start - distance : start - distance + passage]
    return corpus_of(list(texts))


def shuffled(corpus: TokenizedCorpus, block: int = 256, seed: int = 0) -> TokenizedCorpus:
    """Returns the text in blocks shuffled across documents, without long-range dependencies."""
    starts = np.arange(0, len(corpus.tokens), block)
    order = np.random.default_rng(seed).permutation(starts)
    tokens = np.concatenate([corpus.tokens[start : start + block] for start in order])
    return TokenizedCorpus(tokens, corpus.offsets, corpus.names)
