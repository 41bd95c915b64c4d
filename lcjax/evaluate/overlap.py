"""Estimates how much of a text a model was trained on, regardless of files and documents.

Texts are compared in windows of WINDOW tokens. Every WINDOWth window of a tested document is
searched for at every position of the training text.

Shapes: N windows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lcjax.data.hashing import mix

# Long enough that license headers and common phrases are a small part of a document's windows.
WINDOW = 32


def shares_trained_on(documents: Sequence[np.ndarray], trained: Iterable[np.ndarray]) -> np.ndarray:
    """For each document the share of its windows found in the training text, float64.

    A document shorter than a window counts as one window, and is searched for among whole documents
    of that length.

    Args:
      documents: int32 [T] tokens each, without the token that ends a document.
      trained: the same for the documents that were trained on.
    """
    windows = [_hashes(document)[::WINDOW] for document in documents]
    wanted = np.unique(np.concatenate(windows)) if windows else np.zeros(0, np.uint64)
    found = np.zeros(len(wanted), bool)
    for document in trained:
        if len(wanted):
            hashes = _hashes(document)
            at = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
            found[at[wanted[at] == hashes]] = True
    return np.array([found[np.searchsorted(wanted, hashes)].mean() for hashes in windows])


def _hashes(tokens: np.ndarray) -> np.ndarray:
    """uint64 [N], hashes of the WINDOW tokens that start at each position.

    A shorter text has one hash, of all its tokens and their number.
    """
    if len(tokens) < WINDOW:
        padded = np.concatenate([tokens, [-1 - len(tokens)] * (WINDOW - len(tokens))])
        return _hashes(padded)
    hashes = tokens.astype(np.int64).astype(np.uint64)
    size = 1
    while size < WINDOW:  # from hashes of `size` tokens to those of twice as many
        hashes = mix(mix(hashes[:-size]) + hashes[size:])
        size *= 2
    return hashes
