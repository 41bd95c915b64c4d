"""The log-sum-exp over very many keys, for which a plain float32 sum is not accurate enough."""

from __future__ import annotations

import sys

import numpy as np
import torch

import triton_ref
from lcjax_scripts.verify.tolerance import ratios_of


def test_compensated_summation_is_accurate(monkeypatch):
    rng = np.random.default_rng(0)
    keys, head_dim = 2**14, 16  # a block takes milliseconds in the interpreter
    q, k, v = (torch.from_numpy(rng.normal(size=(1, rows, 1, head_dim))).float() for rows in (16, keys, keys))
    scores = [q[0, :, 0].to(t) @ k[0, :, 0].to(t).T * head_dim**-0.5 for t in (torch.float32, torch.float64)]
    references = [torch.logsumexp(x, -1)[None, None].numpy() for x in scores]

    def ratios(many_keys: int):
        monkeypatch.setattr(sys.modules["triton_ref.attention"], "MANY_KEYS", many_keys)
        return ratios_of(triton_ref.attention(q, k, v, causal=False, return_lse=True)[1].numpy(), *references)

    compensated = ratios(2**10)
    assert max(compensated) <= 1
    assert ratios(2**30).root_mean_square > 1.5 * compensated.root_mean_square
