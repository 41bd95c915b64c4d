"""Measures kinds of RoPE beyond the trained context, before and after a short LoRA run."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lcjax
from lcjax import step
from lcjax.config import LlamaConfig
from lcjax.config.rope_choice import describe_rope
from lcjax.config.training import TrainingArguments
from lcjax.data import read_documents, stdlib_sources, tokenize
from lcjax.errors import InputError
from lcjax.evaluate import LossByPosition, loss_by_position
from lcjax.model import lora
from lcjax.step.program import build_program


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The settings that all kinds of RoPE and all lengths share."""

    factors: tuple[int, ...] = (2, 4, 8)
    """Lengths as multiples of the trained context."""
    steps: int = 10
    """Training steps, each on one window. With 0, the model is only evaluated."""
    eval_tokens: int = 131_072
    """Number of held-out tokens. They are split into windows."""
    learning_rate: float = 5e-4
    """Peak learning rate, with two warm-up steps and linear decay."""
    lora_r: int = 16
    """Rank of the adapter on all linear layers."""


def measure(
    study: Experiment, model: lcjax.Llama, config: LlamaConfig, tokens: int, stream: np.ndarray
) -> dict[str, Any]:
    """Measures one kind at one length: the loss by position before and after the LoRA run."""
    began = time.perf_counter()
    settings = dataclasses.replace(model.settings, max_seq_length=tokens)
    adapted = lcjax.get_peft_model(lcjax.Llama(config, model.params, settings), r=study.lora_r)
    held_out = list(windows(stream[: study.eval_tokens + 1], tokens))
    losses = {"before": loss_by_position(adapted, held_out)}
    training: list[float] = []
    if study.steps:
        adapted, training = train(study, adapted, windows(stream[study.eval_tokens :], tokens))
        losses["after"] = loss_by_position(adapted, held_out)
    return {
        "tokens": tokens,
        "rope": describe_rope(config),
        "training_losses": training,
        **{name: _buckets(loss) for name, loss in losses.items()},
        "steps": study.steps,
        "seconds": round(time.perf_counter() - began, 1),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "dtype": str(model.head_VD.dtype),
    }


def train(
    study: Experiment, model: lcjax.Llama, batches: Iterator[dict[str, np.ndarray]]
) -> tuple[lcjax.Llama, list[float]]:
    """Trains the adapter on one window per step; returns the model and the losses of the steps."""
    arguments = TrainingArguments(learning_rate=study.learning_rate, warmup_steps=min(2, study.steps))
    program = build_program(model.config, model.params, model.settings, arguments, study.steps)
    train_step = step.jit_train_step(program.objective, program.optimizer)
    state = step.init_state(program.optimizer, program.trainable, arguments.seed)
    losses = []
    for _ in range(study.steps):
        batch = {name: array[None] for name, array in next(batches).items()}
        state, metrics = train_step(state, program.frozen, batch)
        losses.append(round(float(metrics.loss), 4))
    return lcjax.Llama(model.config, lora.combine(state.trainable, program.frozen), model.settings), losses


def token_stream(study: Experiment, context: int, tokenizer, data: Sequence[str] = ()) -> np.ndarray:
    """Returns the tokens of the text as int32. Without `data`, it is the standard library.

    Raises:
      InputError: there is too little text for the longest windows.
    """
    documents = read_documents(data or stdlib_sources())
    stream = tokenize(documents, tokenizer, append_eos=False).tokens
    needed = study.eval_tokens + 1 + max(1, study.steps) * max(study.factors) * context
    if max(study.factors) * context > study.eval_tokens:
        raise InputError(
            f"--eval-tokens {study.eval_tokens} is less than one window of {max(study.factors) * context} tokens; raise it"
        )
    if len(stream) < needed:
        raise InputError(f"the text has {len(stream):,} tokens and {needed:,} are needed; lower --steps or --factors")
    return stream


def windows(stream: np.ndarray, tokens: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields consecutive windows of the stream, as batches of one sequence and one document."""
    positions = np.arange(tokens, dtype=np.int32)[None]
    for start in range(0, len(stream) - tokens, tokens):
        read, labels = (np.array(stream[start + i : start + i + tokens], np.int32)[None] for i in (0, 1))
        yield dict(zip(step.BATCH_KEYS, (read, labels, positions, np.ones_like(positions)), strict=True))


class Results:
    """The measurements, in a JSON file that later runs extend.

    A new measurement of a cell replaces the old one.
    """

    def __init__(self, path: Path, context: int):
        self.path = path
        self.content: dict[str, Any] = {"trained_context": context, "cells": []}
        if path.exists():
            earlier = json.loads(path.read_text())
            if earlier["trained_context"] != context:
                raise InputError(
                    f"{path} has a trained context of {earlier['trained_context']}, not {context}; "
                    "use another --output-dir"
                )
            self.content = earlier

    def add(self, cell: dict[str, Any]) -> None:
        others = [c for c in self.content["cells"] if (c["factor"], c["kind"]) != (cell["factor"], cell["kind"])]
        self.content["cells"] = [*others, cell]
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")


def _buckets(loss: LossByPosition) -> list[dict[str, float]]:
    return [bucket._asdict() for bucket in loss.buckets()]
