"""Runs `lcjax evaluate` after its flags are parsed: loads, measures, reports."""

from __future__ import annotations

import datetime
import itertools
import sys
from pathlib import Path

from rich.console import Console

from lcjax import weights
from lcjax.cli.model_loading import check_adapter, load_model
from lcjax.cli.outputs import check_output_dir, write_json
from lcjax.cli.terminal import mute_libraries, say, show_warnings
from lcjax.data import check_data_paths
from lcjax.errors import InputError
from lcjax.evaluate.arguments import EvaluateArguments
from lcjax.evaluate.pictures import PICTURES, draw
from lcjax.evaluate.provenance import Provenance, load_text, provenance
from lcjax.evaluate.results import Results
from lcjax.evaluate.tables import tables
from lcjax.evaluate.tasks import measure, possible_tasks
from lcjax.evaluate.text import Text
from lcjax.evaluate.titles import subject
from lcjax.report.page import write_report

RESULTS = "results.json"


def run(arguments: EvaluateArguments) -> int:
    """Evaluates, writes and prints; returns the exit code: 0, 2 bad input, 130 interrupted."""
    console = Console(stderr=True)
    mute_libraries()
    with show_warnings(console):
        folder = new_folder(arguments)
        results, source = evaluate(arguments, console)
        described = {"model": arguments.model, "adapter": arguments.adapter and str(arguments.adapter)}
        settings = {"data": arguments.data, "max_seq_length": arguments.max_seq_length, "seed": arguments.seed}
        content = described | settings | {"text": source.as_json()} | results.as_json()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(content, str(folder / RESULTS))
        width = None if sys.stdout.isatty() else 120
        Console(width=width).print(*tables(results))
        for path in [folder / RESULTS, *draw(results, folder, _title(arguments, source))]:
            say(console, str(path))
        if arguments.run is not None and folder.parent == arguments.run:
            say(console, str(write_report(arguments.run)))
    return 0


def evaluate(arguments: EvaluateArguments, console: Console) -> tuple[Results, Provenance]:
    """Runs the requested tasks on the base model and the adapter; determines the text's origin.

    Raises:
      InputError: the data, model or adapter is invalid.
    """
    check_data_paths(arguments.data)
    run = arguments.training_run()
    # The data first, so that its errors are reported before weights are downloaded or loaded.
    tokenizer = weights.load_tokenizer(weights.resolve_model(arguments.model, with_weights=False))
    data = load_text(arguments.text, run, tokenizer, arguments.max_seq_length, console)
    check_adapter(arguments)
    say(console, f"loading {arguments.model}")
    base, adapted, _ = load_model(arguments, arguments.max_seq_length)
    data.check_fit(base.config.vocab_size, arguments.max_seq_length)
    text = Text.of(data, tokenizer)
    source = provenance(text, data, arguments.text, run, tokenizer, console)
    say(console, source.summary())
    for warning in source.warnings:
        say(console, f"warning: {warning}")
    tasks = possible_tasks(arguments, tokenizer, text, lambda line: say(console, line))
    models = {arguments.name_of_model: base} if adapted is None else {"base": base, "adapter": adapted}
    return measure(tasks, models, tokenizer, text, arguments, console), source


def new_folder(arguments: EvaluateArguments) -> Path:
    """The folder for the results; it can be created, and has no earlier evaluation.

    Raises:
      InputError: it has one, or cannot be created.
    """
    folder = arguments.output_dir or _unused(arguments)
    check_output_dir("--output-dir", folder)
    if former := [name for name in (RESULTS, *PICTURES) if (folder / name).exists()]:
        raise InputError(f"--output-dir {folder} has {former[0]} of another evaluation; choose another folder")
    return folder


def _unused(arguments: EvaluateArguments) -> Path:
    """evaluation-TIME in the run's folder, or runs/NAME-evaluation-TIME; numbered if it exists."""
    name = f"evaluation-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    parent = arguments.run or Path("runs")
    if arguments.run is None:
        name = f"{Path(arguments.model).stem.lower()[:80] or 'model'}-{name}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(parent / name for name in names if not (parent / name).exists())


def _title(arguments: EvaluateArguments, source: Provenance) -> str:
    of_adapter = [f"adapter {arguments.adapter}"] if arguments.adapter else []
    held_out = [f"held out of {source.held_out_of}"] if source.held_out_of and arguments.run else []
    return subject(arguments.model, arguments.data, *of_adapter, *held_out, f"{arguments.max_seq_length:,} tokens")
