"""The products of a layer's experts, with random experts for each token.

Shapes: T tokens, C choices of a token, E experts, R rows, O out, I in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.config import LlamaConfig
from lcjax.errors import InputError
from lcjax.ops.grouped import Routing, dispatch, grouped_product, route
from lcjax.plan.compiling.memory import GIB
from lcjax_scripts.bench.kernels.timing import milliseconds

DTYPE = jnp.bfloat16


def measured(config: LlamaConfig, tokens: int, seconds: float, most_gib: float) -> Iterator[dict[str, Any]]:
    """One row for every linear map of an expert and pass.

    Raises:
      InputError: the model has no experts.
    """
    if (experts := config.family.experts(config)) is None:
        raise InputError(f"a {config.model_type} model has no experts; choose one that has, such as gpt-oss-20b")
    score_TE = jax.random.normal(jax.random.key(0), (tokens, experts.count))
    routing = jax.jit(route, static_argnums=1)(lax.top_k(score_TE, experts.per_token)[1], experts.count)
    for row in config.family.parameters:
        if row.in_experts and row.matmul:
            for name, found in _of_map(row.shape(config), routing, tokens, seconds, most_gib):
                yield {"map": row.module, "pass": name, **found}


def _of_map(
    shape: tuple[int, ...], routing: Routing, tokens: int, seconds: float, most_gib: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    (out_features, in_features), choices = shape, routing.row_TC.size
    x_TI = jax.random.normal(jax.random.key(1), (tokens, in_features), DTYPE)
    x_RI = dispatch(x_TI, routing)
    w_EOI = jax.random.normal(jax.random.key(2), (routing.experts, *shape), DTYPE)
    dy_RO = jnp.where(routing.choice_R[:, None] < 0, 0, jnp.ones((len(x_RI), out_features), DTYPE))
    dense = _time(jnp.matmul, jnp.ones((choices, in_features), DTYPE), w_EOI[0].T, seconds=seconds)
    sizes_E = (routing.first_E1[1:] - routing.first_E1[:-1]) * routing.block_rows

    def product(x_RI, w_EOI):
        return grouped_product(x_RI, w_EOI, routing)

    def ragged(x_RI, w_EOI):
        return lax.ragged_dot(x_RI, jnp.swapaxes(w_EOI, 1, 2), sizes_E)

    for name, of in (("forward", None), ("inputs", 0), ("weights", 1)):
        own, other = (_pass(function, of, dy_RO) for function in (product, ragged))
        took = _time(own, x_RI, w_EOI, seconds=seconds)
        memory = jax.jit(other).lower(x_RI, w_EOI).compile().memory_analysis()
        needed = memory.temp_size_in_bytes if memory else 0
        peer = _time(other, x_RI, w_EOI, seconds=seconds) if needed <= most_gib * GIB else None
        yield (
            name,
            {
                "milliseconds": round(took, 4),
                "tflops": round(2 * choices * out_features * in_features / took / 1e9, 1),
                "dense": round(dense / took, 3),
                "ragged_dot": peer and round(peer / took, 2),
                "ragged_dot_gib": round(needed / GIB, 2),
            },
        )


def _pass(function: Callable[..., jax.Array], of: int | None, dy_RO: jax.Array) -> Callable[..., jax.Array]:
    """The function, or its gradient with respect to one of its arguments."""
    if of is None:
        return function
    return lambda *arguments: jax.vjp(function, *arguments)[1](dy_RO)[of]


def _time(function: Callable[..., jax.Array], *arguments: jax.Array, seconds: float) -> float:
    compiled = jax.jit(function).lower(*arguments).compile()
    last: list[Any] = []

    def run() -> None:
        last[:] = [compiled(*arguments)]

    return milliseconds(run, lambda: jax.block_until_ready(last), seconds=seconds)
