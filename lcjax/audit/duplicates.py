"""Finds near-duplicate documents by sketches of their n-grams.

A document's sketch is the k smallest hashes of its n-grams. Of the k smallest hashes of two
sketches together, the share that is in both estimates the Jaccard similarity of the documents' sets
of n-grams, |A & B| / |A | B|. The standard error is below 1 / (2 sqrt(k)) (Broder, On the
resemblance and containment of documents, 1997).
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from lcjax.audit.reuse import ngram_hashes
from lcjax.data import TokenizedCorpus

NGRAM = 8
SKETCH = 128
SIMILAR = 0.8
# Two documents are compared if they are neighbors at this share of a sketch's hashes.
_CANDIDATE_SHARE = SIMILAR / 4


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Near-duplicates: documents that are similar to an earlier one.

    Attributes:
      documents: the number of near-duplicates.
      tokens: their total number of tokens.
      groups: the names of documents that belong together, the group with the most tokens first.
    """

    documents: int
    tokens: int
    groups: tuple[tuple[str, ...], ...]


def near_duplicates(corpus: TokenizedCorpus) -> Duplicates:
    """Groups documents whose estimated similarity is at least SIMILAR.

    Documents shorter than NGRAM tokens are skipped.
    """
    sketches = [_sketch(corpus.document(i)) for i in range(len(corpus))]
    root = list(range(len(corpus)))
    for first, second in _candidates(sketches):
        if _similarity(sketches[first], sketches[second]) >= SIMILAR:
            root[_find(root, second)] = _find(root, first)
    groups: dict[int, list[int]] = collections.defaultdict(list)
    for document in range(len(corpus)):
        groups[_find(root, document)].append(document)
    lengths = corpus.lengths
    found = [group for group in groups.values() if len(group) > 1]
    found.sort(key=lambda group: -int(lengths[group[1:]].sum()))
    return Duplicates(
        documents=sum(len(group) - 1 for group in found),
        tokens=sum(int(lengths[group[1:]].sum()) for group in found),
        groups=tuple(tuple(corpus.names[document] for document in group) for group in found),
    )


def _sketch(tokens: np.ndarray) -> np.ndarray:
    hashes = np.unique(ngram_hashes(tokens, NGRAM))
    return hashes[:SKETCH]


def _candidates(sketches: list[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of documents that share enough hashes.

    Among all documents with a hash, only neighbors in order are paired: of a thousand copies, each
    is paired with the next, which groups them all.
    """
    hashes = np.concatenate(sketches)
    document = np.repeat(np.arange(len(sketches)), [len(sketch) for sketch in sketches])
    order = np.argsort(hashes, kind="stable")
    hashes, document = hashes[order], document[order]
    same = np.flatnonzero(hashes[1:] == hashes[:-1])
    pairs, shared = np.unique(np.stack([document[same], document[same + 1]], axis=1), axis=0, return_counts=True)
    return [
        (first, second)
        for (first, second), count in zip(pairs.tolist(), shared.tolist(), strict=True)
        if count >= _CANDIDATE_SHARE * min(len(sketches[first]), len(sketches[second]))
    ]


def _similarity(first: np.ndarray, second: np.ndarray) -> float:
    together = np.union1d(first, second)[:SKETCH]
    return float(np.mean(np.isin(together, first) & np.isin(together, second)))


def _find(root: list[int], document: int) -> int:
    while root[document] != document:
        root[document] = root[root[document]]
        document = root[document]
    return document
