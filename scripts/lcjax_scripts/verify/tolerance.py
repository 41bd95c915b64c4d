"""The tolerance rule of this project.

    err(implementation, exact) <= 2 * err(plain, exact) + rounding floor

`exact` is the float64 reference, and `plain` is the plain implementation in the dtype of the
implementation. `err` is both the largest and the root-mean-square difference, and both must satisfy
the rule: the first detects a single wrong element, and the second detects a small error in all of
them. The rounding floor is the error of storing an exact result in that dtype: half a unit in the
last place of every element.

This module needs only numpy, so it can judge results of JAX and of torch.

Source: the tests of Dao-AILab/flash-attention.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np


class Errors(NamedTuple):
    """Elementwise errors of the implementation and of the plain one, and the rounding floor."""

    actual: np.ndarray
    plain: np.ndarray
    floor: np.ndarray


class Ratios(NamedTuple):
    """Error divided by the allowed error: at most 1 if the rule holds, inf if there is a nan."""

    largest: float
    root_mean_square: float


def error_ratio(actual: Any, plain: Any, exact: Any, dtype: Any = None) -> float:
    """Returns the error of `actual` divided by the error that the rule allows.

    The result is at most 1 if the rule holds, and inf if `actual` has a nan.

    Args:
      actual, plain, exact: arrays of one shape: the implementation, the plain implementation in the
        same dtype, and the float64 reference.
      dtype: the dtype that determines the rounding floor; that of `actual` by default.
    """
    return max(ratios_of(actual, plain, exact, dtype))


def ratios_of(actual: Any, plain: Any, exact: Any, dtype: Any = None) -> Ratios:
    """Returns both ratios; `error_ratio` is their maximum."""
    errors = errors_of(actual, plain, exact, dtype)
    return Ratios(*(_ratio(size, errors) for size in (_largest, _root_mean_square)))


def leaves_ratios(leaves: Iterable[tuple[Any, Any, Any]], dtype: Any = None) -> Ratios:
    """Returns `ratios_of` for a tree of tensors (actual, plain, exact).

    The root-mean-square ratio is the maximum over the leaves. The largest error is taken over all
    leaves together, each relative to its root mean square: the largest of a few hundred errors
    varies by chance, so among a dozen tensors one is likely to exceed the limit.
    """
    parts = []
    for actual, plain, exact in leaves:
        size = _root_mean_square(np.asarray(exact)) or 1.0
        parts.append(Errors(*(x.ravel() / size for x in errors_of(actual, plain, exact, dtype))))
    together = Errors(*(np.concatenate(x) for x in zip(*parts, strict=True)))
    return Ratios(_ratio(_largest, together), max(_ratio(_root_mean_square, part) for part in parts))


def errors_of(actual: Any, plain: Any, exact: Any, dtype: Any = None) -> Errors:
    """Returns the errors and the rounding floor. Asserts that both references are finite."""
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
