"""The order of the sums of dk and dv, over all queries and heads of a group, affects rounding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch

from lcjax import ops
from lcjax.pallas.schedule import Ranges
from lcjax_scripts.verify.tolerance import ratios_of

TOKENS, HEADS, HEAD_DIM = 1000, 8, 16


def test_the_largest_terms_are_added_last(monkeypatch):
    rng = np.random.default_rng(0)
    q, dout = (rng.normal(size=(1, TOKENS, HEADS, HEAD_DIM)).astype(np.float32) for _ in range(2))
    k, v = (rng.normal(size=(1, TOKENS, 1, HEAD_DIM)).astype(np.float32) for _ in range(2))
    references = [plain_gradients(q, k, v, dout, dtype) for dtype in (torch.float32, torch.float64)]
    together = [ratios_of(*gradients) for gradients in zip(by_pallas(q, k, v, dout), *references, strict=True)]
    assert max(map(max, together)) <= 1
    monkeypatch.setattr(Ranges, "is_of_all_heads", False)
    jax.clear_caches()
    one_by_one = [ratios_of(*gradients) for gradients in zip(by_pallas(q, k, v, dout), *references, strict=True)]
    for ours, theirs in zip(together, one_by_one, strict=True):
        assert theirs.root_mean_square > 1.2 * ours.root_mean_square


def by_pallas(q, k, v, dout):
    def gradients(q, k, v, dout):
        _, pull_back = jax.vjp(lambda k, v: ops.attention(q, k, v, causal=True, implementation="pallas"), k, v)
        return pull_back(dout)

    return [np.asarray(x) for x in jax.jit(gradients)(*map(jnp.asarray, (q, k, v, dout)))]


def plain_gradients(q, k, v, dout, dtype):
    q, k, v, dout = (torch.from_numpy(x)[0].to(dtype) for x in (q, k, v, dout))
    k, v = (x[:, 0].requires_grad_() for x in (k, v))
    scores = torch.einsum("thd,sd->hts", q, k) * HEAD_DIM**-0.5
    weights = torch.softmax(scores.masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), -torch.inf), dim=-1)
    gradients = torch.autograd.grad(torch.einsum("hts,sd->thd", weights, v), (k, v), dout)
    return [x.numpy()[None, :, None] for x in gradients]
