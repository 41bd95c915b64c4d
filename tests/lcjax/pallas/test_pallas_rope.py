"""Compares the interpreted RoPE kernel with the plain float64 reference."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcjax import ops
from lcjax.ops.rope import reference
from tests.support.compiling import QUICK_TO_COMPILE, QUICKEST_TO_COMPILE
from tests.support.exact_angles import exact_angles
from tests.support.numerics import error_ratios


@dataclasses.dataclass(frozen=True)
class Shape:
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    pairs: int
    dtype: str = "float32"
    attention_factor: float = 1.0


SHAPES = {
    "whole": Shape(64, 4, 1, 64, 32),
    "ragged": Shape(37, 3, 3, 128, 64),
    "no power of two": Shape(50, 3, 1, 80, 40),
    "partial": Shape(50, 2, 1, 64, 8),
    "partial, no power of two": Shape(33, 2, 2, 96, 24),
    "one token": Shape(1, 2, 1, 64, 32),
    "bfloat16": Shape(45, 2, 1, 64, 32, "bfloat16"),
    "attention factor, partial": Shape(33, 2, 1, 64, 24, attention_factor=1.2),
}


def inputs(shape: Shape):
    draw = np.random.default_rng(0)
    arrays = (draw.normal(size=(2, shape.tokens, heads, shape.head_dim)) for heads in (shape.heads, shape.kv_heads) * 2)
    # Packed documents at large positions, around a million.
    positions = jnp.asarray(1_000_000 + np.arange(2 * shape.tokens).reshape(2, -1) % 19, jnp.int32)
    frequencies = jnp.asarray(500_000.0 ** (-np.arange(shape.pairs) / shape.pairs), jnp.float32)
    return [jnp.asarray(x, shape.dtype) for x in arrays], positions, frequencies


def with_gradients(rope, q, k, dq, dk):
    out, pull_back = jax.vjp(rope, q, k)
    return [*out, *pull_back((dq, dk))]


def plain(positions, frequencies, factor, dtype, q, k):
    angles = exact_angles(np.asarray(positions), np.asarray(frequencies))
    pairs = 2 * frequencies.size
    cos, sin = (jnp.asarray(factor * f(angles), dtype) for f in (np.cos, np.sin))
    rotate = lambda x: reference.rope(x[..., :pairs], cos, sin)  # noqa: E731
    return tuple(jnp.concatenate([rotate(x), x[..., pairs:]], axis=-1) for x in (q, k))


@functools.cache
def plain_and_exact(shape: Shape):
    """Returns the plain results in the dtype of the shape, and in float64."""
    arrays, positions, frequencies = inputs(shape)

    def computed(dtype, arrays, options):
        rope = functools.partial(plain, positions, frequencies, shape.attention_factor, dtype)
        return jax.jit(functools.partial(with_gradients, rope), compiler_options=options)(*arrays)

    in_dtype = computed(shape.dtype, arrays, QUICK_TO_COMPILE)
    with jax.enable_x64(True):
        exact = computed(jnp.float64, [x.astype(jnp.float64) for x in arrays], QUICKEST_TO_COMPILE)
        return in_dtype, [np.asarray(x) for x in exact]


def ratios(shape: Shape, rope) -> list[float]:
    arrays, positions, frequencies = inputs(shape)
    compute = jax.jit(lambda *x: with_gradients(lambda q, k: rope(q, k, positions, frequencies), *x))
    return error_ratios(compute(*arrays), *plain_and_exact(shape))


def kernel(q, k, positions, frequencies, attention_factor=1.0):
    return ops.rope(q, k, positions, frequencies, attention_factor=attention_factor, implementation="pallas")


@pytest.mark.parametrize("name", SHAPES)
def test_value_and_gradients(name):
    shape = SHAPES[name]
    assert max(ratios(shape, functools.partial(kernel, attention_factor=shape.attention_factor))) <= 1


def test_a_dropped_attention_factor_fails():
    assert min(ratios(SHAPES["attention factor, partial"], kernel)) > 1


@pytest.mark.parametrize("name", ["partial", "partial, no power of two", "attention factor, partial"])
def test_elements_that_are_not_rotated_are_unchanged(name):
    (q, k, *_), positions, frequencies = inputs(SHAPES[name])
    rotated = kernel(q, k, positions, frequencies, SHAPES[name].attention_factor)
    for before, after in zip((q, k), rotated, strict=True):
        np.testing.assert_array_equal(before[..., 2 * frequencies.size :], after[..., 2 * frequencies.size :])


MUTANTS = {
    "a phase off by 0.01": lambda q, k, p, f: kernel(q, k, p, f.at[-1].add(1e-8)),
    "halves swapped": lambda q, k, p, f: tuple(jnp.roll(x, f.size, axis=-1) for x in kernel(q, k, p, f)),
    "the other way round": lambda q, k, p, f: kernel(q, k, -p, f),
    "one position on": lambda q, k, p, f: kernel(q, k, p + 1, f),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_fail(name):
    assert min(ratios(SHAPES["whole"], MUTANTS[name])) > 1


def test_the_backward_pass_is_the_inverse():
    """The backward pass inverts the rotation of the forward pass."""
    (q, k, *_), positions, frequencies = inputs(SHAPES["ragged"])
    rotated, pull_back = jax.vjp(lambda q, k: kernel(q, k, positions, frequencies), q, k)
    for before, after in zip((q, k), pull_back(rotated), strict=True):
        np.testing.assert_allclose(before, after, atol=4 * jnp.finfo(jnp.float32).eps * float(jnp.abs(q).max()))
