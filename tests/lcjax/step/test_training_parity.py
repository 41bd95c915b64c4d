"""Compares LoRA fine-tuning of SmolLM2, step by step, with transformers + PEFT + torch's AdamW."""

from __future__ import annotations

import argparse
import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lcjax
from lcjax.ops.cross_entropy import IGNORE
from tests.support.adamw_steps import Trainer, require_equal_adapters, train_with_torch
from tests.support.oracles import Oracle, with_random_adapter

STEPS, ROWS, TOKENS = 20, 2, 64

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pretrained(smollm2):
    return lcjax.from_pretrained(smollm2, max_seq_length=TOKENS, dtype="float32")


@pytest.fixture(scope="module")
def oracle(pretrained, tmp_path_factory) -> Oracle:
    """SmolLM2 and an adapter that PEFT initialized (B is zero), saved for both libraries."""
    directory = tmp_path_factory.mktemp("smollm2")
    lcjax.save_merged(pretrained[0], directory / "model")
    return with_random_adapter(Oracle(directory / "model"), directory / "adapter", scale=0.0, r=8, lora_alpha=16)


@pytest.fixture(scope="module")
def batches(pretrained) -> list[dict[str, np.ndarray]]:
    """Rows of consecutive source text. Labels are the next tokens; the last one has none."""
    tokens = np.asarray(pretrained[1](inspect.getsource(argparse))["input_ids"][: STEPS * ROWS * TOKENS], np.int32)
    rows = tokens.reshape(STEPS, ROWS, TOKENS)
    labels = np.concatenate([rows[..., 1:], np.full_like(rows[..., :1], IGNORE)], axis=-1)
    positions = np.tile(np.arange(TOKENS, dtype=np.int32), (ROWS, 1))
    return [
        {"tokens": t, "labels": y, "positions": positions, "segment_ids": np.ones_like(t)}
        for t, y in zip(rows, labels, strict=True)
    ]


def test_twenty_steps_of_adamw(pretrained, oracle, batches):
    expected, torch_adapter = train_with_torch(oracle, batches)
    model = lcjax.load_adapter(pretrained[0], oracle.adapter)
    trainer = Trainer(model, STEPS)
    losses, trained = trainer.train(trainer.new_state(), batches)
    deviations = np.abs(losses / expected - 1)
    assert deviations.max() < 1e-4, deviations
    print(f"largest deviation of a loss: {deviations.max():.1e}")
    # Both adapters changed, and their difference is far smaller than the change.
    require_equal_adapters(model, trained, torch_adapter, share=0.01)

    # The comparison detects an optimizer that starts a step late, within four steps.
    state = trainer.new_state()
    late = jax.tree.map(lambda x: x + 1 if jnp.issubdtype(x.dtype, jnp.integer) else x, state.optimizer)
    wrong, _ = trainer.train(dataclasses.replace(state, optimizer=late), batches[:4])
    assert np.abs(wrong / expected[:4] - 1).max() > 1e-4
