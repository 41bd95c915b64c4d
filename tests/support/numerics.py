"""The tolerance rule of `lcjax_scripts.verify.tolerance` for JAX arrays and trees of them."""

from __future__ import annotations

from typing import Any

import jax

from lcjax_scripts.verify.tolerance import error_ratio, leaves_ratios

__all__ = ["error_ratio", "error_ratios", "tree_error_ratio"]


def error_ratios(actual: Any, plain: Any, exact: Any, dtype: Any = None) -> list[float]:
    """Returns `error_ratio` of every leaf of three trees with the same structure."""
    ratios = jax.tree.map(lambda *leaves: error_ratio(*leaves, dtype=dtype), actual, plain, exact)
    return jax.tree.leaves(ratios)


def tree_error_ratio(actual: Any, plain: Any, exact: Any, dtype: Any = None) -> float:
    """Returns `error_ratio` of a tree of gradients.

    The root-mean-square error is computed for each leaf. The largest error is taken over all
    leaves, each relative to its root mean square.
    """
    structure = jax.tree.structure(actual)
    leaves = zip(*(structure.flatten_up_to(tree) for tree in (actual, plain, exact)), strict=True)
    return max(leaves_ratios(leaves, dtype))
