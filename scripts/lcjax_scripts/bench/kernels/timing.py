"""Timing, the same for both sides."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

WARM_UP = 2
REPEATS = 3


def milliseconds(run: Callable[[], object], wait: Callable[[], None], *, seconds: float) -> float:
    """Returns the median time of a run over three rounds.

    A round takes about a third of `seconds`. Its runs are issued without waiting in between.
    """
    for _ in range(WARM_UP):
        run()
    wait()
    start = time.perf_counter()
    run()
    wait()
    runs = max(1, round(seconds / REPEATS / max(time.perf_counter() - start, 1e-6)))
    return statistics.median(_round(run, wait, runs) for _ in range(REPEATS))


def _round(run, wait, runs: int) -> float:
    start = time.perf_counter()
    for _ in range(runs):
        run()
    wait()
    return (time.perf_counter() - start) / runs * 1e3
