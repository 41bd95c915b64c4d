"""How much of a text a model was trained on, whatever files and documents it came in.

Two texts share what they have in windows of WINDOW tokens: of a document under test every WINDOWth window is looked for at
every position of the training text.

Shapes: N windows, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lcjax.data.hashing import mix

# Long enough that license headers and phrases that everybody writes are a small part of a document's windows.
WINDOW = 32


def shares_trained_on(documents: Sequence[np.ndarray], trained: Iterable[np.ndarray]) -> np.ndarray:
    """Of each document the share of its windows that the training text holds, float64 [documents].

    A document shorter than a window counts as one window, and is looked for among whole documents as short.

    Args:
      documents: int32 [T] tokens each, without the token that ends a document.
      trained: the same of the documents that were trained on.
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
    """uint64 [N] of the WINDOW tokens from each position on; of a shorter text one, that of all its tokens and their number."""
    if len(tokens) < WINDOW:
        padded = np.concatenate([tokens, [-1 - len(tokens)] * (WINDOW - len(tokens))])
        return _hashes(padded)
    hashes = tokens.astype(np.int64).astype(np.uint64)
    size = 1
    while size < WINDOW:  # of two neighbors of `size` tokens each, the hash of both
        hashes = mix(mix(hashes[:-size]) + hashes[size:])
        size *= 2
    return hashes
