"""The tolerance rule of this project, in one place.

    err(implementation, float64 reference) <= 2 * err(plain implementation in that dtype, float64 reference) + rounding floor

`err` is taken twice, as the largest and as the root-mean-square difference, and both must satisfy the rule:
the first sees one wrong element, the second sees a small error in all of them. The rounding floor is what
storing an exact result in that dtype may cost: half a unit in the last place of every element.

This module needs only numpy, so it judges results of JAX and of torch.

Source: the tests of Dao-AILab/flash-attention.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np


class Errors(NamedTuple):
    """Element by element: the error of the implementation, that of the yardstick, and the rounding floor."""

    actual: np.ndarray
    plain: np.ndarray
    floor: np.ndarray


class Ratios(NamedTuple):
    """Error over what the rule allows, at most 1 for a right implementation, inf for one with nan."""

    largest: float
    root_mean_square: float


def error_ratio(actual: Any, plain: Any, exact: Any, dtype: Any = None) -> float:
    """The error of `actual` over what the rule allows: at most 1 for a right implementation, inf for one with nan.

    Args:
      actual, plain, exact: arrays of one shape: the implementation, the yardstick in the same dtype, the float64 reference.
      dtype: the dtype whose rounding makes the floor; that of `actual` when None.
    """
    return max(ratios_of(actual, plain, exact, dtype))


def ratios_of(actual: Any, plain: Any, exact: Any, dtype: Any = None) -> Ratios:
    """Both ratios; `error_ratio` is the greater of them."""
    errors = errors_of(actual, plain, exact, dtype)
    return Ratios(*(_ratio(size, errors) for size in (_largest, _root_mean_square)))


def leaves_ratios(leaves: Iterable[tuple[Any, Any, Any]], dtype: Any = None) -> Ratios:
    """`ratios_of` for the tensors (actual, plain, exact) of a tree.

    The root-mean-square ratio is the greatest of those of the leaves. The largest error is taken over all
    leaves together, each relative to its size: the largest of a few hundred errors is luck, and among a
    dozen tensors one is likely to be unlucky.
    """
    parts = []
    for actual, plain, exact in leaves:
        size = _root_mean_square(np.asarray(exact)) or 1.0
        parts.append(Errors(*(x.ravel() / size for x in errors_of(actual, plain, exact, dtype))))
    together = Errors(*(np.concatenate(x) for x in zip(*parts, strict=True)))
    return Ratios(_ratio(_largest, together), max(_ratio(_root_mean_square, part) for part in parts))


def errors_of(actual: Any, plain: Any, exact: Any, dtype: Any = None) -> Errors:
    """The errors and floors of the ratios. Asserts that both references are finite."""
    eps = float(ml_dtypes.finfo(np.asarray(actual).dtype if dtype is None else dtype).eps)
    assert np.asarray(exact).dtype == np.float64
    assert np.shape(actual) == np.shape(plain) == np.shape(exact)
    actual, plain, exact = (np.asarray(x).astype(np.float64) for x in (actual, plain, exact))
    assert np.isfinite(exact).all()
    assert np.isfinite(plain).all()
    error = np.where(np.isfinite(actual), actual - exact, np.inf)
    return Errors(error, plain - exact, eps * np.exp2(np.frexp(exact)[1] - 2.0) * (exact != 0))


def _ratio(size, errors: Errors) -> float:
    allowed = 2 * size(errors.plain) + size(errors.floor)
    return size(errors.actual) / allowed if allowed else float("inf") if size(errors.actual) else 0.0


def _largest(x: np.ndarray) -> float:
    return float(np.abs(x).max(initial=0.0))


def _root_mean_square(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean())) if x.size else 0.0
