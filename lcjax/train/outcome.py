"""The end of a run: saves and prints the results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lcjax import api
from lcjax.cli.terminal import say
from lcjax.model import Llama, lora
from lcjax.report.page import PAGE
from lcjax.report.records import RunRecords
from lcjax.report.summary import summary
from lcjax.train.checkpoints.folder import RunFolder
from lcjax.train.checkpoints.resume import RESULTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


ADAPTER, WEIGHTS = RESULTS


def trained_model(model: Llama, trainable: lora.Tree, output_dir: Path) -> Llama:
    """The model of a run with the weights that were trained, as of `lcjax.model.lora.partition`."""
    trains = lora.everything if model.settings.lora is None else lora.adapters_only
    _, frozen = lora.partition(model.params, lora.trainable_mask(model.params, trains))
    adapter = "" if model.settings.lora is None else str(output_dir / ADAPTER)
    settings = dataclasses.replace(model.settings, adapter=adapter)
    return Llama(model.config, lora.combine(trainable, frozen), settings)


def save_results(
    model: Llama, output_dir: Path, tokenizer: PreTrainedTokenizerFast, figures: Mapping[str, str]
) -> Path:
    """Saves the adapter, or every weight if there is none, with the tokenizer; returns the folder.

    Its card has the figures, see `lcjax.train.reporting.card`.

    Raises:
      InputError: the files cannot be written.
    """
    if model.settings.lora is None:
        api.save_merged(model, output_dir / WEIGHTS, tokenizer, figures)
        return output_dir / WEIGHTS
    api.save_pretrained(model, output_dir / ADAPTER, tokenizer, figures)
    return output_dir / ADAPTER


def losses_before_and_after(evaluations: list[dict]) -> tuple[float | None, float | None]:
    """The first and the last held-out loss in the rows of evaluation.jsonl."""
    losses = [row["eval_loss"] for row in evaluations]
    return (losses[0], losses[-1]) if losses else (None, None)


def say_results(console: Console, output_dir: Path, results: Path) -> None:
    """Prints a summary of the run and where its files are."""
    lines = summary(RunRecords.read(output_dir)) | {results.name: str(output_dir / results.name)}
    if (output_dir / PAGE).exists():
        lines["report"] = str(output_dir / PAGE)
    names = ("metrics.jsonl", "evaluation.jsonl", "samples.jsonl", "loss.png", "checkpoints", "tensorboard")
    lines["also there"] = ", ".join(name for name in names if (output_dir / name).exists())
    for name, text in lines.items():
        say(console, f"{name:<11} {text}")


def say_finished(console: Console, folder: RunFolder) -> None:
    """Prints that the run in the folder had nothing left to do."""
    results = folder.results()
    assert results is not None
    ended = f"all of its {folder.first_step} steps were already taken"
    if folder.first_step < folder.saved["max_steps"]:
        ended = f"it was stopped early after step {folder.first_step}"
    say(console, f"{folder.path} is finished: {ended}; nothing is trained")
    say_results(console, folder.path, results)
