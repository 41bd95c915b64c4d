"""Compares the accuracy of Pallas with that of Triton over the whole matrix."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lcjax_scripts.verify.parity.verdicts import Case

LARGEST_QUOTIENT = 1.1


def pallas_over_triton(cases: Iterable[Case]) -> dict[str, float]:
    """Returns the error of Pallas relative to that of Triton, by operation and dtype.

    The error of an implementation is a root mean square over all cases that both support. The unit
    of each case is the error that the tolerance rule allows, so that different tensors and shapes
    have equal weight. The quotient should be at most LARGEST_QUOTIENT.
    """
    ratios: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        if {"pallas", "triton"} <= case.verdicts.keys():
            pallas, triton = (case.verdicts[name].root_mean_square for name in ("pallas", "triton"))
            ratios.setdefault(f"{case.operation} {case.dtype}", []).append((pallas, triton))
    return {name: _quotient(*zip(*pairs, strict=True)) for name, pairs in ratios.items()}


def less_accurate(cases: Iterable[Case]) -> dict[str, float]:
    """Returns the entries of `pallas_over_triton` that are too large."""
    return {name: value for name, value in pallas_over_triton(cases).items() if not value <= LARGEST_QUOTIENT}


def _quotient(pallas: tuple[float, ...], triton: tuple[float, ...]) -> float:
    ours, theirs = (math.hypot(*errors) for errors in (pallas, triton))
    return ours / theirs if theirs else math.inf if ours else 1.0
