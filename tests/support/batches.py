"""Comparison of batches."""

from __future__ import annotations

import numpy as np


def equal(first, second) -> bool:
    """Returns whether two batches have the same arrays."""
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)
