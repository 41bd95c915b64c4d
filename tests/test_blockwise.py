"""The gradient of a query of few keys is made of differences: how the products in them are rounded is most of its error."""

from __future__ import annotations

import jax
import numpy as np

from kernels.tolerance import ratios_of
from lcjax import blockwise, ops

TOKENS, HEADS, HEAD_DIM = 512, 4, 256


def test_products_of_a_difference_are_of_short_sums(monkeypatch):
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(1, TOKENS, HEADS, HEAD_DIM)).astype(np.float32) for _ in range(4)]
    references = plain_dq_of_two_keys(*inputs), plain_dq_of_two_keys(*(x.astype(np.float64) for x in inputs))
    short = ratios_of(dq_of_two_keys(*inputs), *references)
    assert max(short) <= 1
    monkeypatch.setattr(blockwise, "LONGEST_SUM_OF_A_DIFFERENCE", HEAD_DIM)
    jax.clear_caches()
    long = ratios_of(dq_of_two_keys(*inputs), *references)
    assert min(long) > 1


def dq_of_two_keys(q, k, v, dout):
    def gradient(q, k, v, dout):
        _, pull_back = jax.vjp(lambda q: ops.attention(q, k, v, causal=True, window=2, implementation="xla"), q)
        return pull_back(dout)[0]

    return np.asarray(jax.jit(gradient)(q, k, v, dout))


def plain_dq_of_two_keys(q, k, v, dout):
    """Of a query that sees itself and the key before it, in the dtype of the arrays."""
    keys, values = (np.stack([x, np.roll(x, 1, axis=1)]) for x in (k, v))
    scores = (q * keys).sum(-1) * HEAD_DIM**-0.5
    scores[1, :, 0] = -np.inf
    weights = np.exp(scores - scores.max(axis=0))
    weights /= weights.sum(axis=0)
    dweights = (dout * values).sum(-1)
    dscores = weights * (dweights - (weights * dweights).sum(axis=0))
    return (dscores[..., None] * keys).sum(axis=0) * np.asarray(HEAD_DIM**-0.5, q.dtype)
