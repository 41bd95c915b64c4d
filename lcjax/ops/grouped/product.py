"""`y_r = W_e x_r`, where e is the expert of row r, and its derivatives.

Shapes: R rows in blocks of one expert each (`lcjax.ops.grouped.routing`), E experts, O out, I in.
"""

from __future__ import annotations

import functools
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.ops.grouped import scan
from lcjax.ops.grouped.routing import Routing

IMPLEMENTATIONS = ("pallas", "xla")


class Products(Protocol):
    """An implementation. Sums are float32 and results have x's dtype."""

    def product(self, x_RI: jax.Array, weight_EOI: jax.Array, routing: Routing, transposed: bool) -> jax.Array:
        """`W_e x_r`, [R, O]; with `transposed`, x is [R, O] and the result `W_e^T x_r`, [R, I]."""
        ...

    def outer_product(self, dy_RO: jax.Array, x_RI: jax.Array, routing: Routing) -> jax.Array:
        """The sum of `dy_r x_r^T` over the rows of each expert, [E, O, I], in the order of rows."""
        ...


def grouped_product(
    x_RI: jax.Array, weight_EOI: jax.Array, routing: Routing, *, implementation: str | None = None
) -> jax.Array:
    """`y_r = W_e x_r` for every row r of an expert e, [R, O] in x's dtype; sums are float32.

    Differentiable in x and in the weights. Empty rows have zeros, or, if their x is not zero,
    values that belong to no token. No array has an axis of rows and one of experts.

    Args:
      x_RI, weight_EOI: float32, bfloat16 or float16, of the same dtype.
      routing: the rows of each expert.
      implementation: "xla" or "pallas"; None for pallas in a program for a GPU, and xla otherwise.

    Raises:
      ValueError: shapes do not fit together, or the implementation is unknown.

    Source: Gale et al., MegaBlocks, arXiv 2211.15841.
    """
    rows, experts = len(routing.choice_R), routing.experts
    if x_RI.shape[0] != rows or weight_EOI.shape[::2] != (experts, x_RI.shape[1]) or x_RI.dtype != weight_EOI.dtype:
        raise ValueError(
            f"grouped_product: x {x_RI.dtype}{x_RI.shape} and weights {weight_EOI.dtype}{weight_EOI.shape} do not fit "
            f"{rows} rows of {experts} experts; expected [R, I] and [E, O, I] of one dtype"
        )
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is unknown; use one of {', '.join(IMPLEMENTATIONS)}")
    return _product(implementation, x_RI, weight_EOI, routing)


def of_experts(x_EO: jax.Array, routing: Routing, implementation: str | None = None) -> jax.Array:
    """The vector of each row's expert, [R, O].

    The gradient is the sum over the rows of an expert, in their order.
    """
    return _of_experts(x_EO, routing, implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _of_experts(x_EO: jax.Array, routing: Routing, implementation: str | None) -> jax.Array:
    return x_EO[routing.expert_R]


def _of_experts_forward(x_EO, routing, implementation):
    return _of_experts(x_EO, routing, implementation), routing


def _of_experts_backward(implementation, routing, dy_RO):
    ones_R1 = jnp.ones((len(dy_RO), 1), dy_RO.dtype)
    return _by(implementation, "outer_product", dy_RO, ones_R1, routing)[..., 0], None


_of_experts.defvjp(_of_experts_forward, _of_experts_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(implementation: str | None, x_RI: jax.Array, weight_EOI: jax.Array, routing: Routing) -> jax.Array:
    return _by(implementation, "product", x_RI, weight_EOI, routing, False)


def _forward(implementation, x_RI, weight_EOI, routing):
    return _product(implementation, x_RI, weight_EOI, routing), (x_RI, weight_EOI, routing)


def _backward(implementation, residuals, dy_RO):
    x_RI, weight_EOI, routing = residuals
    dx_RI = _by(implementation, "product", dy_RO, weight_EOI, routing, True)
    return dx_RI, _by(implementation, "outer_product", dy_RO, x_RI, routing), None


_product.defvjp(_forward, _backward)


def _by(implementation: str | None, name: str, *arguments) -> jax.Array:
    """One of the two products by an implementation; None is decided where it is compiled."""

    def kernels():
        from lcjax.pallas.triton import grouped  # import Pallas' Triton backend only if it runs

        return grouped

    def by(products: Products):
        return lambda *arrays: getattr(products, name)(*arrays, *flags)

    arrays = [x for x in arguments if not isinstance(x, bool)]
    flags = [x for x in arguments if isinstance(x, bool)]
    if implementation == "xla":
        return by(scan)(*arrays)
    if implementation == "pallas":
        return by(kernels())(*arrays)
    return lax.platform_dependent(*arrays, cpu=by(scan), cuda=by(kernels()))
