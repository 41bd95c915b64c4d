"""Weights in either 4-bit format.

Shapes: O out, I in; stacks of layers and experts have axes before these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from lcjax.ops import mxfp4, nf4


def is_quantized(weight: Any) -> bool:
    """Whether a node of a parameter tree is a quantized weight."""
    return nf4.is_quantized(weight) or mxfp4.is_mxfp4(weight)


def has_quantized(tree: Any) -> bool:
    """Whether a parameter tree has a quantized weight."""
    return is_quantized(tree) or (isinstance(tree, Mapping) and any(map(has_quantized, tree.values())))


def formats_of(tree: Any) -> set[str]:
    """The names of the 4-bit formats in a parameter tree."""
    if is_quantized(tree):
        return {"mxfp4" if mxfp4.is_mxfp4(tree) else "nf4"}
    return set().union(*map(formats_of, tree.values())) if isinstance(tree, Mapping) else set()


def dequantize(weight: Mapping[str, jax.Array], dtype: jax.typing.DTypeLike) -> jax.Array:
    """The weight [O, I], or the weights [E, O, I], in `dtype`; see the two formats."""
    if mxfp4.is_mxfp4(weight):
        return mxfp4.dequantize(weight, dtype)

    return (nf4.dequantize if weight["codes"].ndim == 2 else nf4.dequantize_stack)(weight, dtype)
