"""Inspects jaxprs, including nested ones."""

from __future__ import annotations

from collections.abc import Iterator

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def equations(jaxpr: ClosedJaxpr | Jaxpr) -> Iterator:
    """Yields every equation of a jaxpr and of the jaxprs in its equations' parameters."""
    for equation in (jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr).eqns:
        yield equation
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(parameter):
                yield from equations(parameter)


def count(jaxpr: ClosedJaxpr, primitive: str) -> int:
    """Returns the number of equations of a primitive. The body of a loop counts once."""
    return sum(equation.primitive.name == primitive for equation in equations(jaxpr))


def output_shapes(jaxpr: ClosedJaxpr) -> set[tuple[int, ...]]:
    """Returns the shapes of all computed arrays."""
    return {tuple(v.aval.shape) for equation in equations(jaxpr) for v in equation.outvars if hasattr(v.aval, "shape")}


def _is_jaxpr(value) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)
