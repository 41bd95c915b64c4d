"""The angles of RoPE from integers of any size, independent of the code under test."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

BITS = 400


def _arctangent_of_inverse(n: int) -> int:
    """Returns atan(1 / n) times 2^BITS, to about a hundred units."""
    total, power, k = 0, (1 << BITS) // n, 0
    while power:
        total += (-1) ** k * (power // (2 * k + 1))
        power, k = power // n**2, k + 1
    return total


PI = 16 * _arctangent_of_inverse(5) - 4 * _arctangent_of_inverse(239)  # Machin's formula
TURNS_PER_RADIAN = Fraction(1 << BITS, 2 * PI)


def exact_turns(positions: np.ndarray, frequencies_F: np.ndarray) -> np.ndarray:
    """Returns `position * frequency / (2 pi)` without whole turns, -1/2 to 1/2, float64 [..., F].

    Positions are integers, and frequencies float32 numbers that are taken as exact.
    """
    unit = 2**BITS
    rates_F = np.array([int(Fraction(float(f)) * TURNS_PER_RADIAN * unit) for f in np.asarray(frequencies_F)], object)
    turns = np.asarray(positions).astype(object)[..., None] * rates_F
    return (((turns + unit // 2) % unit - unit // 2) / unit).astype(np.float64)


def exact_angles(positions: np.ndarray, frequencies_F: np.ndarray) -> np.ndarray:
    """Returns the same in radians."""
    return 2 * math.pi * exact_turns(positions, frequencies_F)
