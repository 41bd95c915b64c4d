"""Checks angles at all int32 positions against integers of any size, for every kind of RoPE."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcjax import ops
from lcjax.config.rope import LONGEST, attention_factor
from lcjax.ops.rope import inverse_frequencies, rope_tables, turns
from tests.support.compiling import QUICKEST_TO_COMPILE
from tests.support.exact_angles import PI, exact_angles, exact_turns
from tests.support.numerics import error_ratio
from tests.support.rope_kinds import KINDS, PAIRS, ours

# The bound that the docstrings state, of cosines and sines.
BOUND = 2.0**-23
FAR = np.concatenate([np.arange(n - 3, n + 3) for n in (2**24, 2**30)] + [np.arange(LONGEST - 5, LONGEST + 1)])
POSITIONS = np.concatenate([np.arange(4), 10 ** np.arange(1, 8), FAR]).astype(np.int32)


def worst_error(tables, positions, frequencies, factor=1.0) -> float:
    """Returns the largest error of cosines and sines, relative to the attention factor."""
    angles = exact_angles(positions, frequencies)
    exact = factor * np.cos(angles), factor * np.sin(angles)
    return max(np.abs(np.asarray(x)[0] - y).max() / factor for x, y in zip(tables, exact, strict=True))


@functools.cache
def frequencies_of(name: str) -> np.ndarray:
    """Returns the frequencies of a kind for the longest sequence, as a compiled program does."""
    frequencies = jax.jit(inverse_frequencies, static_argnums=0)(ours(name), jnp.int32(LONGEST))
    return np.asarray(frequencies)


@pytest.mark.parametrize("name", KINDS)
def test_cosines_and_sines_of_every_kind(name):
    """The frequencies and their words are traced, as in a model."""
    factor = attention_factor(ours(name))

    @jax.jit
    def tables(positions_BT):
        frequencies = jnp.asarray(inverse_frequencies(ours(name), jnp.max(positions_BT)))
        return frequencies, rope_tables(positions_BT, frequencies, factor)

    frequencies, found = tables(jnp.asarray(POSITIONS[None]))
    assert worst_error(found, POSITIONS, np.asarray(frequencies), factor) < BOUND


def test_cosines_and_sines_of_random_angles():
    draw = np.random.default_rng(0)
    positions = draw.integers(-(2**31), 2**31, 500).astype(np.int32)
    frequencies = np.concatenate([draw.uniform(-8, 8, 40), 2.0 ** -draw.uniform(0, 40, 40)]).astype(np.float32)
    found = jax.jit(rope_tables)(jnp.asarray(positions[None]), jnp.asarray(frequencies))
    assert 0.5 * BOUND < worst_error(found, positions, frequencies) < BOUND


def float32_product(positions, frequencies, _high, _low):
    angles = positions.astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def split_product(positions, frequencies, _high, _low):
    """The sum of two float32 products, each without rounding of the position."""
    angles = ((positions >> 16 << 16).astype(jnp.float32) * frequencies, (positions & 0xFFFF).astype(jnp.float32))
    angles = angles[0] + angles[1] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


MUTANTS = {
    "a float32 angle": float32_product,
    "a float32 angle of two parts": split_product,
    "the first word alone": lambda p, _, high, low: turns.cos_and_sin(p, high, 0 * low),
    "an unsigned second word": lambda p, _, high, low: turns.cos_and_sin(p, high + (low < 0), low),
    "a unit of the first word": lambda p, _, high, low: turns.cos_and_sin(p, high + 1, low),
    "256 units of the second word": lambda p, _, high, low: turns.cos_and_sin(p, high, low + 256),
    "a float32 position": lambda p, _, high, low: turns.cos_and_sin(p.astype(jnp.float32).astype(jnp.int32), high, low),
    "one position on": lambda p, _, high, low: turns.cos_and_sin(p + 1, high, low),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_of_angles_fail(mutant):
    frequencies = frequencies_of("llama3")
    high, low = (word[None, None] for word in turns.turns_per_token(jnp.asarray(frequencies)))
    positions = FAR.astype(np.int32)
    arguments = jnp.asarray(positions)[None, :, None], jnp.asarray(frequencies)[None, None], high, low
    assert worst_error(turns.cos_and_sin(arguments[0], high, low), positions, frequencies) < BOUND
    assert worst_error(MUTANTS[mutant](*arguments), positions, frequencies) > BOUND


def test_a_frequency_becomes_the_first_64_bits_of_its_turns():
    edges = [0.0, 1.0, -1.0, 2.0, 1e-45, 1.2e-38, 2.0**-40, 6.2831855, 3e38, -0.3, 1e10]
    draw = np.random.default_rng(0)
    frequencies = np.array([*edges, *draw.uniform(0, 1, 100), *(10 ** draw.uniform(-9, 2, 100))], np.float32)
    high, low = np.asarray(turns.turns_per_token(jnp.asarray(frequencies))).astype(object)
    # The turns of one token, and the bits beyond those that float64 has.
    for shift in (0, 32):
        units = (high * 2**32 + low) * 2**shift
        found = ((units + 2**63) % 2**64 - 2**63) / 2**64
        exact = exact_turns(np.array([2**shift]), frequencies)[0]
        distance = np.abs(found.astype(np.float64) - exact)
        assert np.minimum(distance, 1 - distance).max() <= 1.01 * 2.0 ** (shift - 64) + 2.0**-54


def test_the_digits_of_pi():
    exact = (1 << 256 + 400) // (2 * PI)
    assert exact == turns.INVERSE_OF_2_PI
    assert str(PI * 10**30 >> 400) == "3141592653589793238462643383279"


def rotated(x, angles, factor, sign, dtype):
    first, second = np.split(np.asarray(x).astype(dtype), 2, axis=-1)
    cos, sin = ((factor * f(angles))[None, :, None].astype(dtype) for f in (np.cos, np.sin))
    return np.concatenate([first * cos - sign * second * sin, second * cos + sign * first * sin], axis=-1)


@functools.cache
def operands() -> list[jax.Array]:
    draw = np.random.default_rng(0)
    return [jnp.asarray(draw.normal(size=(1, len(POSITIONS), n, 2 * PAIRS)), jnp.float32) for n in (2, 1, 2, 1)]


def worst_ratio(name: str, implementation: str, moved: int = 0) -> float:
    """Returns the largest ratio of the tolerance rule over rotated q and k and their gradients."""
    frequencies, factor = frequencies_of(name), attention_factor(ours(name))
    positions = jnp.asarray(POSITIONS[None] - moved)

    def rope(q, k):
        return ops.rope(
            q, k, positions, jnp.asarray(frequencies), attention_factor=factor, implementation=implementation
        )

    def with_gradients(q, k, dq, dk):
        out, pull_back = jax.vjp(rope, q, k)
        return *out, *pull_back((dq, dk))

    found = jax.jit(with_gradients, compiler_options=QUICKEST_TO_COMPILE)(*operands())
    angles = exact_angles(POSITIONS, frequencies)
    ratios = []
    for actual, x, sign in zip(found, operands(), (1, 1, -1, -1), strict=True):
        plain, exact = (rotated(x, angles, factor, sign, dtype) for dtype in (np.float32, np.float64))
        # The far positions are judged alone as well.
        far = np.s_[:, -len(FAR) :]
        ratios += [error_ratio(actual, plain, exact), error_ratio(np.asarray(actual)[far], plain[far], exact[far])]
    return max(ratios)


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
@pytest.mark.parametrize("name", KINDS)
def test_rotations_and_gradients_of_every_kind(name, implementation):
    assert worst_ratio(name, implementation) <= 1


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_a_rotation_of_another_position_fails(implementation):
    assert worst_ratio("yarn", implementation, moved=1) > 1
