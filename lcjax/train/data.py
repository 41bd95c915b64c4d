"""Reads a run's data before the weights are loaded, and prints the summary."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lcjax.audit.advice import advice_before_training
from lcjax.cli.terminal import say
from lcjax.config.training import TrainingArguments
from lcjax.data import Data, load_corpus
from lcjax.train.selection.best import require_held_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_run_data(
    paths: Sequence[str | Path] | str | Path,
    tokenizer: PreTrainedTokenizerFast,
    max_seq_length: int,
    arguments: TrainingArguments,
    date: datetime.datetime,
    console: Console,
) -> Data:
    """Reads and packs the data of a run, and prints a summary.

    Args:
      paths: text files, tables of records, folders; see `lcjax.data.read_sources`.
      tokenizer: the model's.
      max_seq_length: T, tokens in a row.
      arguments: of the run.
      date: when the run was first started; a chat template writes it.
      console: for the progress and the summary.

    Raises:
      InputError: the data has an error that the user can correct.
    """
    data = load_corpus(
        paths,
        tokenizer,
        max_seq_length,
        held_out_fraction=arguments.eval_fraction,
        seed=arguments.seed,
        documents=arguments.documents,
        columns=arguments.columns,
        weights=arguments.data_weights,
        date=date,
        progress=console,
    )
    require_held_out(data, arguments)
    say(console, data.summary())
    if not arguments.eval_fraction:
        say(
            console,
            "nothing is held out (--eval-fraction 0): the loss is measured only on the text that is trained on",
        )
    for line in data.mixture.summary() if data.mixture else ():
        say(console, line)
    rows = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    steps = arguments.number_of_steps(len(data.train_plan))
    for line in advice_before_training(data.corpus, max_seq_length, rows, steps):
        say(console, f"advice: {line}")
    return data
