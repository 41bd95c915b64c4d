"""Output of compiled libraries goes to a file, and Python's to the terminal (`native_log`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lcjax.cli.native_log import NativeLog

PROGRAM = """
import ctypes, os, sys
from pathlib import Path
from rich.console import Console
from lcjax.cli.native_log import NativeLog

console, native = Console(stderr=True), ctypes.CDLL(None)
with NativeLog() as log:
    native.write(2, b"early\\n", 6)
    log.move_to(Path("xla.log"))
    native.write(2, b"late\\n", 5)
    console.print("the terminal")
    if sys.argv[1:] == ["abort"]:
        native.abort()
native.write(2, b"after\\n", 6)
print("python", file=sys.stderr)
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=folder, capture_output=True, text=True)


def test_what_a_library_prints_is_in_the_file_and_not_on_the_terminal(tmp_path):
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (0, "the terminal\nafter\npython\n")
    assert (tmp_path / "xla.log").read_text() == "early\nlate\n"


def test_the_last_lines_of_an_aborting_library_are_shown(tmp_path):
    done = run(tmp_path, "abort")
    assert done.returncode < 0
    assert done.stderr == "the terminal\n"
    assert (tmp_path / "xla.log").read_text() == "early\nlate\n"


def test_a_log_is_appended_to_and_removed_when_empty(tmp_path):
    (tmp_path / "xla.log").write_text("before\n")
    with NativeLog() as log:
        temporary = log.path
        log.move_to(tmp_path / "xla.log")
        os.write(2, b"now\n")
    assert (tmp_path / "xla.log").read_text() == "before\nnow\n"
    with NativeLog() as log:
        empty = log.path
    assert temporary is not None
    assert empty is not None
    assert not temporary.exists()
    assert not empty.exists()


def test_a_pause_gives_libraries_the_terminal(tmp_path, capfd):
    """An unknown flag in XLA_FLAGS used to end a run without a visible message."""
    with NativeLog() as log:
        with log.paused():
            os.write(2, b"seen\n")
        os.write(2, b"not seen\n")
        log.move_to(tmp_path / "xla.log")
    assert capfd.readouterr().err == "seen\n"
    assert (tmp_path / "xla.log").read_text() == "not seen\n"


def test_standard_output_as_well(tmp_path, capfd):
    with NativeLog(with_stdout=True) as log:
        os.write(1, b"of a library\n")
        print("the terminal")
        with log.paused():
            os.write(1, b"seen\n")
        log.move_to(tmp_path / "xla.log")
    os.write(1, b"after\n")
    assert capfd.readouterr().out == "the terminal\nseen\nafter\n"
    assert (tmp_path / "xla.log").read_text() == "of a library\n"
