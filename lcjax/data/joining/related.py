"""Joins documents that share rare words, up to the length of a window.

This is in-context pretraining (Shi et al., arXiv 2310.10638) with shared rare words instead of
embeddings: every document is used once, on a path that goes from each document to the most similar
unused one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lcjax.data.hashing import mix

# Documents are compared within shards of at most this many tokens, in order. A shard takes about 60
# bytes per token.
SHARD_TOKENS = 1 << 23
# A word is a pair of tokens. More documents than MOST with it make it common.
MOST = 50
# More similar documents are copies, from which the model would only learn to copy.
COPY = 0.8


def related_groups(
    tokens: np.ndarray, offsets: np.ndarray, documents: Sequence[int], max_seq_length: int
) -> list[list[int]]:
    """Groups of related documents, each of at most `max_seq_length` tokens, in the order to join.

    A document is a vector over the words that at most MOST documents of its shard have, and at most
    half of them. The weights are log(1 + n / n_w) for n documents, n_w of them with the word. The
    similarity is the cosine. A path begins at the document with the fewest shared words, continues
    with the most similar unused document, and ends where there is none. A group ends with its path,
    or before its length would exceed the window. A longer document is a group of its own.

    Args:
      tokens: [total] int32 ids.
      offsets: [N + 1] int64; document i is `tokens[offsets[i]:offsets[i + 1]]`.
      documents: those to group, ascending.
      max_seq_length: T, the tokens of a window.

    Returns:
      every document once.
    """
    groups: list[list[int]] = []
    for shard in _shards(offsets, documents):
        for path in _paths(_Words([tokens[offsets[i] : offsets[i + 1]] for i in shard])):
            groups += filled([shard[place] for place in path], offsets, max_seq_length)
    return groups


def filled(path: Sequence[int], offsets: np.ndarray, max_seq_length: int) -> list[list[int]]:
    """Consecutive documents of a path in groups of at most `max_seq_length` tokens."""
    groups: list[list[int]] = []
    free = -1
    for document in path:
        length = int(offsets[document + 1] - offsets[document])
        if length > free:
            groups.append([])
            free = max_seq_length
        groups[-1].append(document)
        free -= length
    return groups


def _shards(offsets: np.ndarray, documents: Sequence[int]) -> Iterator[list[int]]:
    shard: list[int] = []
    size = 0
    for document in documents:
        length = int(offsets[document + 1] - offsets[document])
        if shard and size + length > SHARD_TOKENS:
            yield shard
            shard, size = [], 0
        shard.append(document)
        size += length
    if shard:
        yield shard


class _Words:
    """The rare words of n documents, in both directions.

    Document i has the words `words[starts[i]:starts[i + 1]]`, and word w is in the documents
    `holders[bounds[w]:bounds[w + 1]]`.
    """

    def __init__(self, texts: Sequence[np.ndarray]):
        found = [np.unique(mix(mix(ids[:-1].astype(np.uint64)) ^ ids[1:].astype(np.uint64))) for ids in texts]
        document = np.repeat(np.arange(len(texts), dtype=np.int32), [len(words) for words in found])
        hashes = np.concatenate(found)
        del found
        order = np.argsort(hashes, kind="stable")
        first = np.flatnonzero(np.diff(hashes[order], prepend=~hashes[order[:1]]) != 0)
        counts = np.diff(first, append=len(hashes))
        weights = np.log(1 + len(texts) / counts) * (counts <= min(MOST, max(2, len(texts) // 2)))
        in_order = np.repeat(weights, counts)
        self.norms = np.sqrt(np.bincount(document[order], in_order**2, minlength=len(texts)))
        # Words of a single document add to its norm, and are not followed.
        is_shared = (counts > 1) & (weights > 0)
        kept = np.repeat(is_shared, counts)
        self.holders = document[order][kept]
        self.bounds = np.concatenate([[0], np.cumsum(counts[is_shared])])
        self.weights = weights[is_shared]
        word = np.repeat(np.arange(len(self.weights)), counts[is_shared])
        by_document = np.argsort(self.holders, kind="stable")
        self.words = word[by_document]
        self.starts = np.searchsorted(self.holders[by_document], np.arange(len(texts) + 1))

    def __len__(self) -> int:
        return len(self.norms)

    def links(self) -> np.ndarray:
        """[n] the number of shared words with other documents, counted with each of them."""
        sizes = np.diff(self.bounds)[self.words] - 1
        return np.diff(np.concatenate([[0], np.cumsum(sizes)])[self.starts])

    def similar(self, document: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents with a common rare word, ascending, and their similarities."""
        words = self.words[self.starts[document] : self.starts[document + 1]]
        begins, sizes = self.bounds[words], np.diff(self.bounds)[words]
        places = np.repeat(begins - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
        others, inverse = np.unique(self.holders[places], return_inverse=True)
        shared = np.bincount(inverse, np.repeat(self.weights[words] ** 2, sizes), minlength=len(others))
        return others, shared / (self.norms[document] * np.maximum(self.norms[others], 1e-9))


def _paths(words: _Words) -> Iterator[list[int]]:
    """Paths through similar documents, each document once."""
    unused = np.ones(len(words), dtype=bool)
    for first in np.argsort(words.links(), kind="stable").tolist():
        if not unused[first]:
            continue
        path = [first]
        unused[first] = False
        while True:
            others, similarity = words.similar(path[-1])
            is_open = unused[others] & (similarity < COPY)
            if not is_open.any():
                break
            following = int(others[is_open][np.argmax(similarity[is_open])])
            unused[following] = False
            path.append(following)
        yield path
