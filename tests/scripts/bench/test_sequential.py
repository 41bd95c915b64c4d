"""Processes that are measured one at a time, while the next ones prepare."""

from __future__ import annotations

import os
import sys

import pytest

from lcjax_scripts import paths
from lcjax_scripts.bench.steps.sequential import measured

# Records when it starts, when it may continue, and when it ends.
PROGRAM = """
import json, sys, time
sys.path.insert(0, {scripts!r})
from lcjax_scripts.bench.steps.sequential import wait_for_turn
name, folder = sys.argv[1:]
def note(what):
    with open(folder, "a") as file:
        file.write(what + " " + name + chr(10))
note("start")
if name.startswith("early"): raise SystemExit("no memory for " + name)
wait_for_turn()
note("go")
time.sleep(0.5)
if name.startswith("late"): raise SystemExit("no memory for " + name)
note("end")
print("a line that is no result")
print(json.dumps({{"name": name}}))
"""
SCRIPTS = str(paths.SCRIPTS)


@pytest.fixture
def run(tmp_path):
    notes = tmp_path / "notes"

    def run(names: list[str], ahead: int):
        rows = [{"row": name} for name in names]
        program = PROGRAM.format(scripts=SCRIPTS)
        results = measured(
            rows,
            lambda row: [sys.executable, "-c", program, row["row"], str(notes)],
            os.environ,
            ahead=ahead,
        )
        return [result for _, result in results], notes.read_text().splitlines()

    return run


def test_without_ahead_a_row_starts_when_the_one_before_has_ended(run):
    results, notes = run(["a1", "b1"], 0)
    assert results == [{"name": "a1"}, {"name": "b1"}]
    assert notes == [f"{what} {name}" for name in ("a1", "b1") for what in ("start", "go", "end")]


def test_rows_get_ready_while_one_is_measured(run):
    results, notes = run(["a1", "b1", "c1", "d1"], 2)
    assert [result["name"] for result in results] == ["a1", "b1", "c1", "d1"]
    for name, next_one in (("a1", "b1"), ("a1", "c1"), ("b1", "d1")):
        assert notes.index(f"start {next_one}") < notes.index(f"end {name}") < notes.index(f"go {next_one}")
    assert notes.index("end a1") < notes.index("start d1")


def test_a_row_that_dies_gives_the_last_line_of_its_stderr(run):
    results, _ = run(["early1", "late1", "c1"], 1)
    assert results == [{"error": "no memory for early1"}, {"error": "no memory for late1"}, {"name": "c1"}]


def test_a_row_that_fails_gives_its_error_and_not_the_lines_after_it():
    program = "import sys; sys.exit('Traceback:\\n  a line\\njax.errors.JaxRuntimeError: NO: E1200\\nlibrary.cc:425')"
    [(_, result)] = measured([{"row": "a"}], lambda row: [sys.executable, "-c", program], os.environ, ahead=0)
    assert result == {"error": "jax.errors.JaxRuntimeError: NO: E1200"}
