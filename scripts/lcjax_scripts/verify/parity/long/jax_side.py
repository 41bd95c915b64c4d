"""The sampled rows of a long shape, computed by each of lcjax's implementations."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lcjax import ops
from lcjax.errors import InputError
from lcjax_scripts.verify.cases import LongShape
from lcjax_scripts.verify.inputs import Arrays
from lcjax_scripts.verify.parity.jobs import Job, outcome_of
from lcjax_scripts.verify.parity.long.inputs import (
    MULTIPLIERS,
    OFFSET,
    SHIFTS,
    UNIT,
    digest_of,
    inverse_frequencies,
    long_shape,
    sample_rows,
    tensors,
)
from lcjax_scripts.verify.parity.results import Outcome, SideResult


def run(job: Job, implementations: tuple[str, ...]) -> SideResult:
    shape = long_shape(job)
    results = _rope if shape.of == "rope" else _attention
    outcomes: dict[str, Outcome] = {}
    refused: dict[str, str] = {}
    for name in implementations:
        if name == "xla" and shape.of == "attention" and shape.tokens > 2**16:
            refused[name] = "minutes at this length"
            continue
        try:
            outcomes[name] = outcome_of(functools.partial(_rows_of, results, shape, name), refusal=InputError)
        except InputError as reason:
            refused[name] = str(reason)
    inputs = jax.jit(lambda: {name: _rows(_values(shape, name), shape) for name in tensors(shape)})()
    return SideResult(
        digest_of({name: np.asarray(x.astype(jnp.float32)) for name, x in inputs.items()}), outcomes, refused
    )


def _rows_of(results, shape: LongShape, implementation: str) -> Arrays:
    # Inputs are arguments. As part of the program, they would be computed again for each use.
    inputs = {name: jax.jit(functools.partial(_values, shape, name))() for name in tensors(shape)}
    rows = jax.jit(functools.partial(results, shape, implementation))(inputs)
    return {name: np.asarray(x.astype(jnp.float32)) for name, x in rows.items()}


def _attention(shape: LongShape, implementation: str, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def attention(q, k, v):
        return ops.attention(q, k, v, causal=True, window=shape.window, return_lse=True, implementation=implementation)

    (out, lse), pull_back = jax.vjp(attention, inputs["q"], inputs["k"], inputs["v"])
    dq, dk, dv = pull_back((inputs["dout"], jnp.zeros_like(lse)))
    rows = {name: _rows(x, shape) for name, x in (("out", out), ("dq", dq), ("dk", dk), ("dv", dv))}
    return rows | {"lse": jnp.take(lse, sample_rows(shape), axis=2)}


def _rope(shape: LongShape, implementation: str, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    positions = jnp.arange(shape.tokens, dtype=jnp.int32)[None]
    frequencies = jnp.asarray(inverse_frequencies(shape))

    def rope(q, k):
        return ops.rope(q, k, positions, frequencies, implementation=implementation)

    (q, k), pull_back = jax.vjp(rope, inputs["q"], inputs["k"])
    dq, dk = pull_back((inputs["dq_out"], inputs["dk_out"]))
    return {name: _rows(x, shape) for name, x in (("q", q), ("k", k), ("dq", dq), ("dk", dk))}


def _values(shape: LongShape, name: str) -> jax.Array:
    seed, dimensions = tensors(shape)[name]
    x = lax.iota(jnp.uint32, int(np.prod(dimensions))) * jnp.uint32(MULTIPLIERS[0]) + jnp.uint32(seed)
    x = (x ^ (x >> SHIFTS[0])) * jnp.uint32(MULTIPLIERS[1])
    x = (x ^ (x >> SHIFTS[1])) >> 24
    return ((x.astype(jnp.float32) - OFFSET) * UNIT).astype(shape.dtype).reshape(dimensions)


def _rows(x: jax.Array, shape: LongShape) -> jax.Array:
    """Returns [1, rows, heads, head_dim].

    Slices are used instead of a gather, whose indices may have 32 bits and overflow.
    """
    return jnp.concatenate([x[:, start : start + shape.rows] for start in shape.samples], axis=1)
