"""lcjax_scripts/verify/parity/report/progress.py: progress on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lcjax_scripts.verify.parity.report.progress import MatrixProgress


@pytest.fixture
def shown():
    """The output of a run of four shapes, 40 seconds each. The third one has a failed case."""

    def show(*, terminal: bool) -> str:
        seconds = iter(range(0, 400, 40))
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        with MatrixProgress(console, 4, lambda: next(seconds)) as progress:
            for name, failed in (("a", 0), ("b", 0), ("c", 1), ("d", 1)):
                progress.judged(name, failed)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    return show


def test_a_log_gets_at_most_one_line_per_minute(shown):
    assert shown(terminal=False).splitlines() == ["2/4 shapes, 0 failed, 1 min", "4/4 shapes, 1 failed, 3 min"]


def test_a_terminal_gets_a_bar(shown):
    bar = shown(terminal=True)
    assert "1 failed" in bar
    assert "4/4" in bar
    assert "shapes" not in bar
