"""Finds the longest context that fits.

Memory grows almost linearly with the number of tokens, so few compilations are enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable

LENGTH_STEP = 1024
"""Tokens; the search tries multiples of it."""

# After so many steps the interval is halved instead. A straight line takes five steps.
_MAX_INTERPOLATIONS = 10


def largest_fitting(load: Callable[[int], float], low: int, high: int, guess: int | None = None) -> int | None:
    """The largest n from `low` to `high` with `load(n) <= 1`; None if `low` does not fit.

    `load` must grow with n. Each step interpolates linearly between the nearest n that fits and the
    nearest that does not, or extrapolates from the two nearest known ones. The search ends when
    some n fits and n + 1 does not (or is above `high`), so `load` has been called with both.
    `guess` is tried first.
    """
    known: dict[int, float] = {}
    fits, fails = low - 1, high + 1
    while fails - fits > 1:
        if not known:
            candidate = low if guess is None else guess
        elif len(known) == 1:
            [only] = known
            candidate = 16 * only if guess is None else only + 1
        else:
            both = fits in known and fails in known
            ends = (fits, fails) if both else sorted(known, key=lambda n: abs(known[n] - 1))[:2]
            candidate = _crossing(known, *ends) if len(known) < _MAX_INTERPOLATIONS else (fits + fails) // 2
        candidate = min(max(candidate, fits + 1), fails - 1)
        known[candidate] = load(candidate)
        if known[candidate] <= 1:
            fits = candidate
        else:
            fails = candidate
    return fits if fits >= low else None


def _crossing(known: dict[int, float], a: int, b: int) -> int:
    """The point, rounded down, where the line through two points reaches 1.

    If the line does not rise, twice the larger of them.
    """
    slope = (known[b] - known[a]) / (b - a)
    return math.floor(a + (1 - known[a]) / slope) if slope > 0 else 2 * max(a, b)
