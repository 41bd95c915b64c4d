"""Which documents are held out for evaluation."""

from __future__ import annotations

import numpy as np

from lcjax.errors import InputError


def split_held_out(n_documents: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws whole documents, so that no held-out text was trained on.

    Args:
      n_documents: N, at least 1.
      fraction: share of the documents to hold out, in [0, 1); 0 holds out none, anything more at least one.
      seed: 0, ..., 2^32 - 1; the same seed draws the same documents, with every version of numpy.

    Returns:
      the indices of the documents to train on (never none) and of those held out, each sorted, int64.

    Raises:
      InputError: the fraction or the seed is out of range, or there is but one document to divide.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"held_out_fraction={fraction} must be at least 0 and below 1")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed} must be at least 0 and below 2^32")
    if fraction > 0 and n_documents < 2:
        raise InputError(f"held_out_fraction={fraction} needs two documents or more; add another, or set it to 0")
    held_out = min(max(1, round(fraction * n_documents)), n_documents - 1) if fraction > 0 else 0
    # RandomState rather than default_rng: its stream is frozen (NEP 19), and a resumed run must not swap its parts.
    order = np.random.RandomState(seed).permutation(n_documents).astype(np.int64)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
