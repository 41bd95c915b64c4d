"""The tolerance rule of this project, in one place.

    err(implementation, float64 reference) <= 2 * err(plain implementation in that dtype, float64 reference) + rounding floor

`err` is taken twice, as the largest and as the root-mean-square difference, and both must obey: the first sees one wrong
element, the second sees a small error on all of them. The rounding floor is what storing a perfect result in that dtype may
cost: half a unit in the last place of every element.

Source: the tests of Dao-AILab/flash-attention.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def error_ratio(actual: Any, plain: Any, exact: Any, dtype: Any = None) -> float:
    """The error of `actual` over what the rule allows: at most 1 for a right implementation, inf for one with nan.

    Args:
      actual, plain, exact: arrays of one shape: the implementation, the yardstick in the same dtype, the float64 reference.
      dtype: the dtype whose rounding makes the floor; that of `actual` when None.
    """
    return max(_ratio(size, *_errors(actual, plain, exact, dtype)) for size in (_largest, _root_mean_square))


def error_ratios(actual: Any, plain: Any, exact: Any, dtype: Any = None) -> list[float]:
    """`error_ratio` of every leaf of three trees of one structure."""
    ratios = jax.tree.map(lambda *leaves: error_ratio(*leaves, dtype=dtype), actual, plain, exact)
    return jax.tree.leaves(ratios)


def tree_error_ratio(actual: Any, plain: Any, exact: Any, dtype: Any = None) -> float:
    """`error_ratio` of a tree of gradients: root-mean-square leaf by leaf, largest over all leaves, each in parts of its size.

    The largest of a few hundred errors is a matter of luck, and among a dozen tensors someone has bad luck.
    """

    def parts(actual, plain, exact):
        size = _root_mean_square(np.asarray(exact)) or 1.0
        return np.stack([x.ravel() / size for x in _errors(actual, plain, exact, dtype)])

    leaves = jax.tree.leaves(jax.tree.map(parts, actual, plain, exact))
    return max(
        *(_ratio(_root_mean_square, *leaf) for leaf in leaves), _ratio(_largest, *np.concatenate(leaves, axis=1))
    )


def _errors(actual, plain, exact, dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(error of actual, of plain, rounding floor), element by element."""
    eps = float(jnp.finfo(np.asarray(actual).dtype if dtype is None else dtype).eps)
    assert np.asarray(exact).dtype == np.float64
    assert np.shape(actual) == np.shape(plain) == np.shape(exact)
    actual, plain, exact = (np.asarray(x).astype(np.float64) for x in (actual, plain, exact))
    assert np.isfinite(exact).all()
    assert np.isfinite(plain).all()
    error = np.where(np.isfinite(actual), actual - exact, np.inf)
    return error, plain - exact, eps * np.exp2(np.frexp(exact)[1] - 2.0) * (exact != 0)


def _ratio(size, error, plain_error, floor) -> float:
    allowed = 2 * size(plain_error) + size(floor)
    return size(error) / allowed if allowed else float("inf") if size(error) else 0.0


def _largest(x: np.ndarray) -> float:
    return float(np.abs(x).max(initial=0.0))


def _root_mean_square(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean())) if x.size else 0.0
