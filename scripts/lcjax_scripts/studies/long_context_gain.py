"""Loss by position after training on whole sequences, and on the same ones cut into windows."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

import lcjax
from lcjax import step
from lcjax.cli.terminal import say
from lcjax.data import Data, lay_out, load_corpus
from lcjax.errors import InputError
from lcjax.evaluate import LossByPosition, loss_by_position
from lcjax.evaluate.excerpts import Excerpt, rows_of
from lcjax.evaluate.pictures import buckets_figure
from lcjax.evaluate.text import Text
from lcjax.model import lora
from lcjax.step.program import build_program
from lcjax.train import TrainingArguments

Found = dict[str, list[LossByPosition]]
"""The losses of every held-out document, by what the model was trained on."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Two runs of LoRA on the same tokens, and the documents that both are evaluated on."""

    context: int = 2048
    """Tokens per sequence. A step trains on one sequence."""
    window: int = 256
    """Tokens per window of the second run. It must divide the context."""
    steps: int = 12
    """Steps of each run."""
    learning_rate: float = 1e-3
    """The peak of a cosine schedule with two warm-up steps."""
    documents: int = 8
    """Number of held-out documents. Each is longer than the context."""
    seed: int = 0
    """Seed of the split, the order of the sequences, and the adapter's initial weights."""

    def __post_init__(self):
        if not 0 < self.window < self.context or self.context % self.window:
            raise InputError(f"--window {self.window} does not divide --context {self.context}; give a smaller divisor")
        for flag, value, least in (("--steps", self.steps, 3), ("--documents", self.documents, 2)):
            if value < least:
                raise InputError(f"{flag} {value} is out of range; it must be at least {least}")


def run(experiment: Experiment, model: lcjax.Llama, tokenizer, paths: Sequence[str]) -> Found:
    """Evaluates the model before training, and after training on whole and on cut sequences.

    Raises:
      InputError: the text has too few long documents.
    """
    console = Console(stderr=True)
    context, window = experiment.context, experiment.window
    model = lcjax.get_peft_model(model, r=16, lora_alpha=32, random_state=experiment.seed)
    data = load_corpus(list(paths), tokenizer, context, held_out_fraction=0.1, seed=experiment.seed)
    documents = Text(data.corpus, data.held_out_plan, None).long_documents(context, experiment.documents)
    if len(documents) < 2:
        raise InputError(f"one held-out document is longer than {context:,} tokens; add text, or lower --context")
    found: Found = {"before": evaluate(model, documents, context)}
    for tokens in (context, window):
        began = time.perf_counter()
        trained = train(model, experiment, batches(data, experiment, tokens))
        seconds = time.perf_counter() - began
        say(console, f"{experiment.steps} steps of {context:,} tokens, {tokens:,} at a time: {seconds:.0f} s")
        found[f"{tokens:,} at a time"] = evaluate(trained, documents, context)
    return found


def batches(data: Data, experiment: Experiment, tokens: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields sequences of one document each, cut into windows [1, context / tokens, tokens].

    The positions of every window start at 0.
    """
    plan = data.train_plan
    whole = [i for i in range(len(plan)) if plan.row(i)[0].stop - plan.row(i)[0].start == experiment.context]
    if len(whole) < experiment.steps:
        raise InputError(
            f"the data has {len(whole)} sequences of {experiment.context:,} tokens for --steps {experiment.steps}; lower it"
        )
    for row in np.random.default_rng(experiment.seed).permutation(whole)[: experiment.steps]:
        batch = lay_out(data.corpus, plan, np.array([row]))
        arrays = {name: np.reshape(batch[name], (1, -1, tokens)) for name in step.BATCH_KEYS}
        yield arrays | {"positions": arrays["positions"] % tokens}


def train(model: lcjax.Llama, experiment: Experiment, batches: Iterator[dict[str, np.ndarray]]) -> lcjax.Llama:
    """Returns the model after one AdamW step per batch."""
    arguments = TrainingArguments(learning_rate=experiment.learning_rate, lr_scheduler_type="cosine", warmup_steps=2)
    program = build_program(model.config, model.params, model.settings, arguments, experiment.steps)
    state = step.init_state(program.optimizer, program.trainable, experiment.seed)
    train_step = step.jit_train_step(program.objective, program.optimizer)
    for batch in batches:
        state, metrics = train_step(state, program.frozen, batch)
        if not np.isfinite(metrics.loss):
            raise InputError(f"the loss became {metrics.loss}; lower --learning-rate {experiment.learning_rate}")
    return lcjax.Llama(model.config, lora.combine(state.trainable, program.frozen), model.settings)


def evaluate(model: lcjax.Llama, documents: list[np.ndarray], context: int) -> list[LossByPosition]:
    """Returns the losses of every document's first `context` tokens."""
    excerpts = [Excerpt.ending(document, context, context, context) for document in documents]
    return [loss_by_position(model, [batch]) for batch, _ in rows_of(excerpts, context)]


def print_table(experiment: Experiment, found: Found) -> None:
    """Prints the table in Markdown, and the mean gain with its standard error."""
    totals = {name: sum(losses, LossByPosition.none()) for name, losses in found.items()}
    starts = {bucket.label: str(bucket.start) for bucket in totals["before"].buckets()}
    rows = [(label, [total.means()[start] for total in totals.values()]) for label, start in starts.items()]
    rows.append((f"{experiment.window:,} and beyond", [total.beyond(experiment.window) for total in totals.values()]))
    print(f"| positions | {' | '.join(found)} | whole minus cut |", "|" + " --- |" * (len(found) + 2), sep="\n")
    for label, losses in rows:
        print(f"| {label} | {' | '.join(f'{loss:.4f}' for loss in losses)} | {losses[1] - losses[2]:+.4f} |")
    _, whole, cut = found.values()
    # Compare within documents, because losses differ far more between documents than between runs.
    gains = np.array(
        [c.beyond(experiment.window) - w.beyond(experiment.window) for w, c in zip(whole, cut, strict=True)]
    )
    error = gains.std(ddof=1) / len(gains) ** 0.5
    share = f"{(gains > 0).sum()} of {len(gains)}"
    gained = f"whole sequences gain {gains.mean():.4f} nats per token more than cut ones"
    print(f"\nBeyond {experiment.window:,}, {gained} (mean of the documents;")
    print(f"standard error over documents {error:.4f}), and are better in {share} documents.")


def write(output_dir: Path, arguments: Mapping[str, Any], found: Found) -> None:
    """Writes the loss by position of every document as JSON, and a plot of the changes."""
    figures = {name: [losses.means() for losses in documents] for name, documents in found.items()}
    content = (
        json.dumps({"arguments": {name: str(value) for name, value in arguments.items()}} | figures, indent=1) + "\n"
    )
    (output_dir / "long-context-gain.json").write_text(content, encoding="utf-8")
    before, *after = [sum(losses, LossByPosition.none()).buckets() for losses in found.values()]
    changes = {
        f"trained on {name}": [b._replace(loss=b.loss - a.loss) for a, b in zip(before, buckets, strict=True)]
        for name, buckets in zip(list(found)[1:], after, strict=True)
    }
    figure = buckets_figure(changes)
    figure.axes[0].set_ylabel("change of the held-out loss (nats per token)")
    FigureCanvasAgg(figure).print_png(str(output_dir / "long-context-gain.png"))
