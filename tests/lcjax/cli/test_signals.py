"""Ctrl-C, SIGTERM, closed pipes, full disks and terminals: exit codes and output of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lcjax.__main__ import COMMANDS

IMPORTING = "importing JAX and its libraries"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
WORDS = {signal.SIGINT: "interrupted\n", signal.SIGTERM: "terminated\n"}


def module_of(name: str) -> str:
    return COMMANDS[name][0].removesuffix(".__main__")


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash, in which `python` is the interpreter of the tests."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, **variables}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, timeout=600)


# Each command parses its flags with the first of the two libraries, and then imports the second.
FLAGS = {"train": "", "plan": "--model llama-3.1-8b"}
IMPORTS = [(command, "tyro", "") for command in COMMANDS] + [
    (command, "jax", flags) for command, flags in FLAGS.items()
]


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize(
    ("command", "library", "flags"),
    [*IMPORTS, *((f"lcjax {command}", "jax", flags) for command, flags in FLAGS.items())],
)
def test_a_signal_while_libraries_are_imported_is_one_line(command, library, flags, number, tmp_path):
    """The library blocks during its import, so that the process is importing at the signal.

    As an extension in C, it does not pass on what is raised in it.
    """
    slow = (
        "import sys, time; sys.modules[__name__].__path__ = []\nprint('importing', flush=True)\n"
        "try:\n    time.sleep(60)\nexcept BaseException:\n    raise ImportError('an error') from None\n"
    )
    (tmp_path / f"{library}.py").write_text(slow)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        [sys.executable, "-m", *(command.split() if " " in command else [module_of(command)]), *flags.split()],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=600)
    assert (process.returncode, said) == (CODES[number], WORDS[number])


# Waits in C for a process of its own, which the signal does not interrupt.
COMPILING = """
import ctypes
from lcjax.cli.entry import entry_point
from lcjax.cli.signals import WhileCompiling
from lcjax.cli.startup import leave
def main(argv):
    with WhileCompiling():
        ctypes.CDLL(None).system(b"echo compiling; exec sleep 600")
leave(entry_point(main)([]))
"""


def test_a_signal_ends_a_compilation_that_does_not_return():
    process = subprocess.Popen(
        [sys.executable, "-c", COMPILING], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "compiling\n"
    process.send_signal(signal.SIGTERM)
    # Returns when both processes have ended, because they have the same streams.
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "terminated\n")


@pytest.mark.parametrize("delay", [0.15, 0.4, 0.8, 1.5])
def test_a_signal_at_any_moment_is_one_line(delay, tmp_path):
    """The signal may come during imports, or in the command, which waits for an empty pipe."""
    pipe = tmp_path / "prompt"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "lcjax.tokens", str(pipe)]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("redirection", "codes"),
    [
        ("| true", "141"),
        ("> /dev/full", "2"),
        (">&-", "0"),
        ("2>&-", "0"),
        ("<&- >&- 2>&-", "0"),
        ("| cat > /dev/null", "0"),
    ],
)
def test_help_with_a_closed_or_full_output(redirection, codes):
    done = shell(f"exec 9>&1; (python -m lcjax train --help {redirection}; echo ${{PIPESTATUS[0]}} >&9)")
    assert done.stdout.splitlines()[-1] == codes
    said = [line for line in done.stderr.splitlines() if line != IMPORTING]
    assert len(said) <= 1
    if codes == "2":
        assert said == [
            "error: standard output, or a file, cannot be used (No space left on device); free disk space, or choose another place"
        ]
