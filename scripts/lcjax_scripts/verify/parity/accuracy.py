"""Whether Pallas is as accurate as Triton over the matrix, not only each within the rule."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lcjax_scripts.verify.parity.verdicts import Case

LARGEST_QUOTIENT = 1.1


def pallas_over_triton(cases: Iterable[Case]) -> dict[str, float]:
    """How much less accurate Pallas is than Triton, by operation and dtype: 1 where they are alike, at most LARGEST_QUOTIENT.

    The quotient of their errors, each the root-mean-square over all cases that both have of (root-mean-square error over what the
    rule allows). In that unit errors of different tensors and shapes can be averaged, and no case is too small to count.
    """
    ratios: dict[str, list[tuple[float, float]]] = {}
    for case in cases:
        if {"pallas", "triton"} <= case.verdicts.keys():
            pallas, triton = (case.verdicts[name].root_mean_square for name in ("pallas", "triton"))
            ratios.setdefault(f"{case.operation} {case.dtype}", []).append((pallas, triton))
    return {name: _quotient(*zip(*pairs, strict=True)) for name, pairs in ratios.items()}


def less_accurate(cases: Iterable[Case]) -> dict[str, float]:
    """The entries of `pallas_over_triton` that are too large."""
    return {name: value for name, value in pallas_over_triton(cases).items() if not value <= LARGEST_QUOTIENT}


def _quotient(pallas: tuple[float, ...], triton: tuple[float, ...]) -> float:
    ours, theirs = (math.hypot(*errors) for errors in (pallas, triton))
    return ours / theirs if theirs else math.inf if ours else 1.0
