"""The progress of a run, on a terminal and in a log file."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from lcjax.cli.terminal import say, show_warnings
from lcjax.train.reporting.progress import TrainingProgress, figures


def run(console: Console, logging_steps: int = 1) -> None:
    with TrainingProgress(console, start=2, max_steps=6, logging_steps=logging_steps) as progress:
        for step in range(3, 7):
            progress.update({"step": step, "loss": 2.0 + step / 100, "tokens_per_second": 12345.6, "epoch": step / 8})


def test_lines_without_a_terminal():
    file = io.StringIO()
    run(Console(file=file, width=40), logging_steps=2)
    assert file.getvalue().splitlines() == [
        "compiling the training step and taking the first",
        "step 4/6  loss 2.0400  12,346 tok/s  epoch 0.50",
        "step 6/6  loss 2.0600  12,346 tok/s  epoch 0.75",
    ]


def test_a_bar_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, record=True, width=120)
    run(console)
    last = console.export_text().splitlines()[-1]
    for part in ("training ━━━━", "6/6", "loss 2.0600  12,346 tok/s  epoch 0.75", "eta 0:00:00"):
        assert part in last
    assert "step" not in last


def test_what_a_step_took_is_shown_if_it_is_known():
    row = {"loss": 2.0, "tokens_per_second": 900.0}
    assert figures(row) == "loss 2.0000  900 tok/s"
    row |= {"epoch": 1.5, "mfu": 0.412, "device_memory_peak_bytes": 13 * 2**30 + 2**28, "host_memory_bytes": 2**31}
    assert figures(row) == "loss 2.0000  900 tok/s  epoch 1.50  MFU 41%  peak 13.2 GiB  host 2.0 GiB"


def test_a_line_is_shown_verbatim():
    file = io.StringIO()
    line = "runs/[red]x[/red] :smile: " + "long " * 50
    say(Console(file=file, width=40), line)
    assert file.getvalue() == line + "\n"


@pytest.mark.parametrize("with_handler", [False, True])
def test_warnings_of_lcjax_are_shown_once(with_handler):
    """This also holds if a library adds a handler to the root logger, as absl does."""
    file, other = io.StringIO(), logging.StreamHandler(io.StringIO())
    if with_handler:
        logging.getLogger().addHandler(other)
    with show_warnings(Console(file=file)):
        logging.getLogger("lcjax.data.documents").warning("skipped %d files of [%s]", 3, "x")
        logging.getLogger("lcjax").info("no news")
    logging.getLogger().removeHandler(other)
    assert file.getvalue() == "warning: skipped 3 files of [x]\n"
    assert other.stream.getvalue() == ""
    assert logging.getLogger("lcjax").handlers == []
