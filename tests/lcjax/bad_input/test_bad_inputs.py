"""Invalid inputs of every command give one line with the cause, exit code 2, and no written files.

The tables are in `tests/support/bad_inputs`. Progress lines and warnings may come before.
"""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from lcjax.__main__ import COMMANDS
from tests.support.bad_inputs import cases

CASES = cases()
PHASE = re.compile(
    r"(loading|reading|tokenizing|checking|converting|probing|compilation|start:) ?|[\d,]+ documents|warning: |advice: "
)


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(("command", "flags", "said"), CASES)
def test_one_line(command, flags, said, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(COMMANDS[command][0]).main
    before = state_of(world)
    code = main([word.replace("{w}", str(world)) for word in shlex.split(flags)])
    captured = capsys.readouterr()
    *phases, line = captured.err.splitlines()
    assert (code, captured.out) == (2, "")
    assert line.startswith("error: ")
    assert said.replace("{w}", str(world)) in line
    assert [phase for phase in phases if not PHASE.match(phase)] == []
    assert state_of(world) == before
    assert list(tmp_path.iterdir()) == []


def test_there_are_300_of_them():
    assert len(set(CASES)) >= 300
