"""Runs `lcjax leak` after its flags are parsed: probes packed rows of user data."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lcjax import api, weights
from lcjax.cli.terminal import say, show_warnings
from lcjax.data import Data, check_data_paths, lay_out, load_corpus
from lcjax.errors import InputError
from lcjax.leak.arguments import LeakArguments
from lcjax.leak.probe import LeakProbe, leak_line
from lcjax.model import Llama
from lcjax.step.on_devices import on_all_devices


def run(arguments: LeakArguments) -> int:
    """Probes and prints; returns the exit code: 0 nothing leaks, 1 something does, 2 bad input."""
    console = Console(stderr=True)
    with show_warnings(console):
        model, data = load(arguments, console)
    try:
        leaks = find_leaks(model, data, arguments.rows, console)
    except FloatingPointError as error:
        raise InputError(f"{arguments.model} cannot be probed: {error}") from None
    print("\n".join(leaks) if leaks else f"nothing leaks: {_probed(data, arguments.rows)}")
    return 1 if leaks else 0


def load(arguments: LeakArguments, console: Console) -> tuple[Llama, Data]:
    """The model and the packed data, with progress on `console`."""
    check_data_paths(arguments.data)
    # The data first, so that its errors are reported before weights are downloaded or loaded.
    tokenizer = weights.load_tokenizer(weights.resolve_model(arguments.model, with_weights=False))
    data = load_corpus(
        arguments.data,
        tokenizer,
        arguments.max_seq_length,
        held_out_fraction=0,
        seed=0,
        documents=arguments.documents,
        columns=arguments.columns,
        progress=console,
    )
    _chosen(data, arguments.rows)  # raises InputError if there is nothing to probe
    say(console, f"loading {arguments.model}")
    model, _ = api.from_pretrained(
        arguments.model,
        arguments.max_seq_length,
        arguments.dtype,
        attention=arguments.attention,
        quantize=arguments.quantize,
        memory=arguments.memory,
    )
    data.check_fit(model.config.vocab_size, arguments.max_seq_length)
    return model, data


def find_leaks(model: Llama, data: Data, rows: int, console: Console) -> list[str]:
    """Changes every document of `rows` packed rows, one at a time; reports those affecting others.

    Raises:
      InputError: no row has two documents.
    """
    chosen = _chosen(data, rows)
    say(console, f"probing {len(chosen)} rows")
    probe, leaks = LeakProbe(*on_all_devices(model, data.train_plan.max_seq_length)), []
    columns = TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for index in progress.track(chosen):
            row = lay_out(data.corpus, data.train_plan, np.array(index))
            segments = list(range(1, len(data.train_plan.row(index)) + 1))
            reached = probe.reached(row, segments)
            leaks += [leak_line(data, index, changed, others) for changed, others in reached.items() if others]
    return leaks


def _chosen(data: Data, rows: int) -> list[int]:
    packed = data.train_plan.packed_rows
    if not len(packed):
        raise InputError(
            "no row has two documents, so nothing can leak; give shorter documents or a longer --max-seq-length"
        )
    return packed[np.arange(min(rows, len(packed))) * len(packed) // min(rows, len(packed))].tolist()


def _probed(data: Data, rows: int) -> str:
    chosen = _chosen(data, rows)
    documents = sum(len(data.train_plan.row(index)) for index in chosen)
    return (
        f"{documents} documents in {len(chosen)} rows, each changed separately, left all others unchanged, bit for bit"
    )
