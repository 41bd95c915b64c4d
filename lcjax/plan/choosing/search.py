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
# Of the limit. From here on, a line through two points may be almost level.
_NEAR = 0.9


def largest_fitting(load: Callable[[int], float], low: int, high: int, guess: int | None = None) -> int | None:
    """The largest n from `low` to `high` with `load(n) <= 1`; None if `low` does not fit.

    `load` must grow with n. Each step interpolates linearly between the nearest n that fits and the
    nearest that does not, or extrapolates from the two nearest known ones. The search ends when
    some n fits and n + 1 does not (or is above `high`), so `load` has been called with both.
    `guess` is tried first.
    """
    known: dict[int, float] = {}
    fits, fails = low - 1, high + 1
    stride = 1  # of the next step outward while one side is unknown
    while fails - fits > 1:
        both = fits in known and fails in known
        if not known:
            candidate = low if guess is None else guess
        elif len(known) == 1:
            [only] = known
            candidate = 16 * only if guess is None else only + 1
        else:
            ends = (fits, fails) if both else sorted(known, key=lambda n: abs(known[n] - 1))[:2]
            halves = both and len(known) >= _MAX_INTERPOLATIONS
            candidate = (fits + fails) // 2 if halves else _crossing(known, *ends)
        if len(known) > 1 and not both:
            # The compiler recomputes values if a step would hardly fit. So memory can stay the same
            # for many tokens just below the limit, and a line through it crosses the limit too
            # early or far too late. The steps grow until one of them is beyond it.
            outward = fits + stride if fits in known else fails - stride
            candidate = max(candidate, outward) if fits in known else min(candidate, outward)
            if fits in known and known[fits] > _NEAR:
                candidate = min(candidate, 2 * fits)
            stride *= 2 if candidate == outward else 1
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
