"""The log-sum-exp over very many keys, for which a plain float32 sum is not accurate enough."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lcjax import ops
from lcjax.pallas.triton import attention_forward
from lcjax_scripts.verify.tolerance import ratios_of

# A few more than the kernel regards as many.
KEYS, HEAD_DIM = 2**17 + 2**10, 16


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(1, rows, 1, HEAD_DIM)).astype(np.float32) for rows in (16, KEYS, KEYS)]


@pytest.fixture(scope="module")
def references(inputs):
    """The log-sum-exp [1, 1, 16] in (float32, float64)."""
    q, k, _ = (torch.from_numpy(x)[0, :, 0] for x in inputs)
    return [
        torch.logsumexp(q.to(t) @ k.to(t).T * HEAD_DIM**-0.5, -1)[None, None].numpy()
        for t in (torch.float32, torch.float64)
    ]


def by_pallas(inputs):
    def lse(q, k, v):
        return ops.attention(q, k, v, causal=False, return_lse=True, implementation="pallas")[1]

    return np.asarray(jax.jit(lse)(*map(jnp.asarray, inputs)))


def test_compensated_summation_is_accurate(inputs, references, monkeypatch):
    compensated = ratios_of(by_pallas(inputs), *references)
    assert max(compensated) <= 1
    monkeypatch.setattr(attention_forward, "MANY_KEYS", 2**30)
    jax.clear_caches()
    plain = ratios_of(by_pallas(inputs), *references)
    assert plain.root_mean_square > 2 * compensated.root_mean_square
