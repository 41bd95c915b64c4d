"""The end of a run: saves and prints the results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lcjax import api
from lcjax.cli.terminal import say
from lcjax.model import Llama, lora
from lcjax.train.checkpoints.folder import RunFolder
from lcjax.train.reporting.metrics import parse_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def trained_model(model: Llama, trainable: lora.Tree) -> Llama:
    """The model of a run with the weights that were trained, as of `lcjax.model.lora.partition`."""
    trains = lora.everything if model.settings.lora is None else lora.adapters_only
    _, frozen = lora.partition(model.params, lora.trainable_mask(model.params, trains))
    return Llama(model.config, lora.combine(trainable, frozen), model.settings)


def save_results(model: Llama, output_dir: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Saves the adapter, or every weight if there is none, with the tokenizer; returns the folder.

    Raises:
      InputError: the files cannot be written.
    """
    if model.settings.lora is None:
        api.save_merged(model, output_dir / "model", tokenizer)
        return output_dir / "model"
    api.save_pretrained(model, output_dir / "adapter", tokenizer)
    return output_dir / "adapter"


def losses_before_and_after(evaluations: list[dict]) -> tuple[float | None, float | None]:
    """The first and the last held-out loss in the rows of evaluation.jsonl."""
    losses = [row["eval_loss"] for row in evaluations]
    return (losses[0], losses[-1]) if losses else (None, None)


def say_results(console: Console, output_dir: Path, results: Path, evaluations: list[dict]) -> None:
    """Prints the results of the run and where its files are."""
    before, after = losses_before_and_after(evaluations)
    if before is not None and after is not None:
        say(console, f"held-out loss {before:.4f} before, {after:.4f} after")
    places = {
        "metrics": "metrics.jsonl",
        "picture": "loss.png",
        "checkpoints": "checkpoints",
        "tensorboard": "tensorboard",
    }
    for name, place in {results.name: results.name, **places}.items():
        say(console, f"{name:<11} {output_dir / place}")


def say_finished(console: Console, folder: RunFolder) -> None:
    """Prints that the run in the folder had nothing left to do."""
    results = folder.results()
    assert results is not None
    say(
        console,
        f"{folder.path} is finished: all of its {folder.first_step} steps were already taken; nothing is trained",
    )
    say_results(console, folder.path, results, parse_rows(folder.records["evaluation.jsonl"]))
