"""The objective with experts balanced, in transformers' models; of any dtype."""

from __future__ import annotations

import numpy as np
import torch

from lcjax.model import lora
from lcjax.model.params import TensorName
from lcjax.ops.cross_entropy import IGNORE
from tests.support.fused_experts import parameter_of
from tests.support.oracles import Batch, stacked, to_numpy, torch_mask


def balance_of(router_logits: tuple[torch.Tensor, ...], choices: int, counted_N: torch.Tensor) -> torch.Tensor:
    """transformers' `load_balancing_loss_func`, but with sums in the dtype of the logits."""
    logits_LNE = torch.stack(router_logits)
    probability_LNE = logits_LNE.softmax(-1)
    chosen_LNE = torch.zeros_like(logits_LNE).scatter_(-1, logits_LNE.topk(choices, dim=-1).indices, 1.0)
    counted_N1 = counted_N.to(logits_LNE.dtype)[:, None]
    tokens = counted_N1.sum() * len(router_logits)
    shares = ((x * counted_N1).sum((0, 1)) / tokens for x in (chosen_LNE, probability_LNE))
    return logits_LNE.shape[-1] * (next(shares) * next(shares)).sum()


def balanced_gradients(
    model, batch: Batch, names: list[TensorName], coef: float, *, micro_batches: int = 1, count_padding: bool = False
) -> tuple[float, lora.Tree]:
    """(the mean balance, gradients of the mean loss plus `coef` times it) as a stacked tree."""
    parameters = dict(model.named_parameters())
    wanted = {name: parameters[name].requires_grad_() for name in dict.fromkeys(map(parameter_of, names))}
    loss, balance = torch.zeros(2, dtype=model.dtype)
    total = (batch["labels"] != IGNORE).sum()
    for rows in np.split(np.arange(len(batch["labels"])), micro_batches):
        part = {name: x[rows] for name, x in batch.items()}
        tokens, positions, labels, segments = (
            torch.from_numpy(part[name]).long() for name in ("tokens", "positions", "labels", "segment_ids")
        )
        outputs = model.model(
            input_ids=tokens, position_ids=positions, attention_mask=torch_mask(model, part), use_cache=False,
            output_router_logits=True,
        )  # fmt: skip
        logits = model.lm_head(outputs.last_hidden_state)
        loss = loss + torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
        ) / float(total)
        counted = (segments > 0).flatten() | count_padding
        own = balance_of(outputs.router_logits, model.config.num_experts_per_tok, counted)
        balance = balance + own * (float((labels != IGNORE).sum()) / float(total))
    gradients = torch.autograd.grad(loss + coef * balance, list(wanted.values()))
    found = {name: to_numpy(g) for name, g in zip(wanted, gradients, strict=True)}
    return float(balance.detach()), stacked(found, names)
