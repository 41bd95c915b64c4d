"""Corpora whose reuse is known."""

from __future__ import annotations

import numpy as np

from lcjax.data import TokenizedCorpus

VOCABULARY = 30_000


def corpus_of(documents) -> TokenizedCorpus:
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64)
    tokens = np.concatenate(documents).astype(np.int32)
    return TokenizedCorpus(tokens, offsets, [f"d{i}" for i in range(len(documents))])


def planted(documents=20, length=16_384, passage=64, distance=6_000, seed=0) -> TokenizedCorpus:
    """Random tokens; in the second half of each document ten passages come back that stood `distance` tokens before."""
    rng = np.random.default_rng(seed)
    texts = rng.integers(0, VOCABULARY, (documents, length))
    for text in texts:
        for start in range(length // 2, length // 2 + 20 * passage, 2 * passage):
            text[start : start + passage] = text[start - distance : start - distance + passage]
    return corpus_of(list(texts))


def shuffled(corpus: TokenizedCorpus, block: int = 256, seed: int = 0) -> TokenizedCorpus:
    """The same text in blocks that are shuffled across documents, so that nothing far apart belongs together."""
    starts = np.arange(0, len(corpus.tokens), block)
    order = np.random.default_rng(seed).permutation(starts)
    tokens = np.concatenate([corpus.tokens[start : start + block] for start in order])
    return TokenizedCorpus(tokens, corpus.offsets, corpus.names)
