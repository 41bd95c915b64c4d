"""The same steps of AdamW over an adapter, by torch with PEFT and by lcjax."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import torch
import transformers

import lcjax
from lcjax import step
from lcjax.model import lora
from lcjax.optim.adamw import make_optimizer
from lcjax.optim.schedules import make_schedule
from lcjax.weights.peft import adapter_names
from tests.support.fused_experts import keep_blocks_apart
from tests.support.oracles import Batch, Oracle, micro_batches, split, stacked, torch_loss

RATE, WARMUP, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-3, 3, 0.01, 1.0


def train_with_torch(oracle: Oracle, batches: list[Batch]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(the losses before each step, the trained adapter by name)."""
    model = dataclasses.replace(oracle).plain  # other tests use the untrained one of this oracle
    keep_blocks_apart(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=WEIGHT_DECAY)
    scheduler = transformers.get_scheduler(
        "linear", optimizer, num_warmup_steps=WARMUP, num_training_steps=len(batches)
    )
    losses = []
    for batch in batches:
        loss = torch_loss(model, batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.step()
        scheduler.step()
    adapter = {n.replace(".default.", "."): p.detach().numpy() for n, p in model.named_parameters() if p.requires_grad}
    return np.array(losses), adapter


def require_equal_adapters(model: lcjax.Llama, trained: lora.Tree, other: dict[str, np.ndarray], share: float) -> None:
    """Asserts that the trained B of every module differ by less than `share` of what they moved."""
    theirs = stacked(other, adapter_names(model.settings.lora, model.config))["layers"]
    untrained = lora.detach(model.params)[1]["layers"]
    for path, our_B in jax.tree.leaves_with_path(trained["layers"]):
        if path[-1].key == "lora_B":
            first, their_B = (
                functools.reduce(lambda node, key: node[key.key], path, tree) for tree in (untrained, theirs)
            )
            assert np.linalg.norm(our_B - their_B) < share * np.linalg.norm(our_B - first), path


class Trainer:
    """lcjax's compiled step over the adapter of a model."""

    def __init__(self, model: lcjax.Llama, steps: int):
        trainable, self.frozen, mask = split(model)
        schedule = make_schedule("linear", RATE, steps, warmup_steps=WARMUP)
        optimizer = make_optimizer(schedule, mask, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM)
        self.train_step = step.jit_train_step(step.Objective(model.config, model.settings), optimizer)
        self.new_state = lambda: step.init_state(optimizer, trainable, 0)

    def train(self, state: step.TrainState, batches: list[Batch]) -> tuple[np.ndarray, dict]:
        """(the losses before each step, the trained adapter)."""
        losses = []
        for batch in batches:
            state, metrics = self.train_step(state, self.frozen, micro_batches(batch))
            losses.append(float(metrics.loss))
        return np.array(losses), state.trainable
