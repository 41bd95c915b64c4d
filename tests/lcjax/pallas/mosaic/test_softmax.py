"""lcjax.pallas.mosaic.softmax: the sum of the weights of a million keys, without a kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lcjax.pallas.mosaic import softmax

QUERIES, KEYS, BLOCKS = 64, 128, 8192


@pytest.fixture
def errors(monkeypatch):
    """Returns the root-mean-square error of the log-sum-exp with one sum and with two."""
    monkeypatch.setattr(softmax, "over_rows", lambda x_M, like: x_M[:, None])
    scores = np.random.default_rng(0).normal(size=(64, QUERIES, KEYS)).astype(np.float32)

    def with_sums(count: int) -> float:
        def visit(state, block):
            _, maximum, _, *sums = softmax.step(jnp.asarray(scores)[block % 64], 1.0, *state)
            return (maximum, *sums), None

        zeros = [jnp.zeros(QUERIES, jnp.float32)] * count
        first = jnp.full(QUERIES, softmax.HIDDEN, jnp.float32), *zeros
        (maximum, total, *_), _ = jax.jit(lambda: lax.scan(visit, first, jnp.arange(BLOCKS)))()
        exact = np.exp2(scores.astype(np.float64) - np.asarray(maximum, np.float64)[:, None]).sum((0, 2))
        exact *= BLOCKS // 64
        return float(np.sqrt(np.mean((np.log2(np.asarray(total, np.float64)) - np.log2(exact)) ** 2)))

    return with_sums


def test_two_sums_lose_much_less(errors):
    one, two = errors(1), errors(2)
    assert two < 1e-6
    assert one > 4 * two
