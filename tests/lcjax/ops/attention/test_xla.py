"""The order of sums in the backward pass, whose rounding is most of the error of some gradients.

The gradient of a query with few keys consists of differences. The gradient of an early key is a sum
over hundreds of queries.
"""

from __future__ import annotations

import jax
import numpy as np

from lcjax import ops
from lcjax.ops.attention import xla
from lcjax_scripts.verify.tolerance import ratios_of

TOKENS, HEADS, HEAD_DIM = 512, 4, 256


def test_the_products_of_a_difference_have_short_sums(monkeypatch):
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(1, TOKENS, HEADS, HEAD_DIM)).astype(np.float32) for _ in range(4)]
    references = plain_dq_of_two_keys(*inputs), plain_dq_of_two_keys(*(x.astype(np.float64) for x in inputs))
    short = ratios_of(gradient(0, *inputs, window=2), *references)
    assert max(short) <= 1
    monkeypatch.setattr(xla, "LONGEST_SUM_OF_A_DIFFERENCE", HEAD_DIM)
    jax.clear_caches()
    long = ratios_of(gradient(0, *inputs, window=2), *references)
    assert min(long) > 1


def test_a_key_sums_over_its_queries_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    q, dout = (rng.normal(size=(1, TOKENS, HEADS, 64)).astype(np.float32) for _ in range(2))
    k, v = (rng.normal(size=(1, TOKENS, 1, 64)).astype(np.float32) for _ in range(2))
    exact = plain_dk(*(x.astype(np.float64) for x in (q, k, v, dout)))
    short = gradient(1, q, k, v, dout) - exact
    monkeypatch.setattr(xla, "LONGEST_SUM_OF_QUERIES", TOKENS * HEADS)
    jax.clear_caches()
    long = gradient(1, q, k, v, dout) - exact
    # It is 0.7 for 32,768 elements. The sums of keys that only a few queries see are always short.
    assert np.square(short).mean() ** 0.5 < 0.85 * np.square(long).mean() ** 0.5


def gradient(of: int, q, k, v, dout, **mask):
    """Returns XLA's gradient with respect to the argument number `of`."""

    def pulled_back(*inputs):
        _, pull_back = jax.vjp(lambda *qkv: ops.attention(*qkv, causal=True, implementation="xla", **mask), *inputs)
        return pull_back(dout)[of]

    return np.asarray(jax.jit(pulled_back)(q, k, v))


def plain_dk(q, k, v, dout):
    """Returns dk of causal attention with one key head, in the dtype of the arrays."""
    scale = q.shape[-1] ** -0.5
    scores, dweights = (np.einsum("bthd,bskd->bhts", x, y) for x, y in ((q * scale, k), (dout, v)))
    scores = np.where(np.tri(q.shape[1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
    return np.einsum("bhts,bthd->bsd", dscores, q * scale)[:, :, None]


def plain_dq_of_two_keys(q, k, v, dout):
    """Returns dq of queries that see two keys: their own and the previous one."""
    keys, values = (np.stack([x, np.roll(x, 1, axis=1)]) for x in (k, v))
    scores = (q * keys).sum(-1) * HEAD_DIM**-0.5
    scores[1, :, 0] = -np.inf
    weights = np.exp(scores - scores.max(axis=0))
    weights /= weights.sum(axis=0)
    dweights = (dout * values).sum(-1)
    dscores = weights * (dweights - (weights * dweights).sum(axis=0))
    return (dscores[..., None] * keys).sum(axis=0) * np.asarray(HEAD_DIM**-0.5, q.dtype)
