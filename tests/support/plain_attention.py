"""Attention for models of transformers that have none in float64, with masks of our own."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.masking_utils import sdpa_mask

NAME = "plain"


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Returns [batch, tokens, heads, head_dim]; the softmax is float32 at least.

    Arguments are [batch, heads, tokens, head_dim], and sinks [heads]. The mask is true where a key
    is visible; None is a causal mask.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is None:
        attention_mask = torch.ones_like(scores, dtype=torch.bool).tril(key.shape[2] - query.shape[2])
    scores = scores.masked_fill(~attention_mask[..., : key.shape[2]], -torch.inf)
    keys = scores.shape[3]
    if s_aux is not None:
        sinks = s_aux.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks.to(scores.dtype)], dim=-1)
    weights = torch.softmax(scores, -1, torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)[..., :keys]
    return (weights @ value).transpose(1, 2).contiguous(), None


transformers.AttentionInterface.register(NAME, attention)
transformers.AttentionMaskInterface.register(NAME, sdpa_mask)
