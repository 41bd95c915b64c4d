"""Sends the output of compiled libraries to a file.

XLA writes to file descriptor 2, bypassing Python and progress bars. The library that connects CPUs
of several processes (gloo) writes to file descriptor 1.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_STREAMS = {1: "stdout", 2: "stderr"}


class NativeLog:
    """A context in which file descriptor 2 is a file, and `sys.stderr` is still the terminal.

    The file is temporary until `move_to` gives it a path. If a library aborts the process, the file
    stays, so print its path before that can happen. At the end it is removed if it is empty.

    Args:
      with_stdout: does the same with file descriptor 1 and `sys.stdout`.
    """

    def __init__(self, *, with_stdout: bool = False) -> None:
        self.path: Path | None = None
        self._numbers = (1, 2) if with_stdout else (2,)
        self._terminals: dict[int, int] = {}
        self._replaced: dict[int, TextIO] = {}

    def __enter__(self) -> NativeLog:
        descriptor, path = tempfile.mkstemp(prefix="lcjax-", suffix=".log")
        self.path = Path(path)
        for number in self._numbers:
            stream: TextIO = getattr(sys, _STREAMS[number])
            stream.flush()
            self._terminals[number] = os.dup(number)
            if _descriptor(stream) == number:
                self._replaced[number] = stream
                terminal = open(
                    os.dup(self._terminals[number]),
                    "w",
                    buffering=1,
                    encoding=stream.encoding,
                    errors="backslashreplace",
                )
                setattr(sys, _STREAMS[number], terminal)
        self._write_to(descriptor)
        return self

    def move_to(self, path: Path) -> None:
        """Appends what was written so far to `path`, and writes there from now on.

        Raises:
          OSError: the file cannot be written.
        """
        assert self.path is not None
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(descriptor, self.path.read_bytes())
        self._write_to(descriptor)
        self.path.unlink()
        self.path = path

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which libraries print to the terminal."""
        descriptor = os.dup(2)
        for number, terminal in self._terminals.items():
            os.dup2(terminal, number)
        try:
            yield
        finally:
            self._write_to(descriptor)

    def __exit__(self, *_: object) -> None:
        for number, stream in self._replaced.items():
            getattr(sys, _STREAMS[number]).close()
            setattr(sys, _STREAMS[number], stream)
        for number, terminal in self._terminals.items():
            os.dup2(terminal, number)
            os.close(terminal)
        self._replaced, self._terminals = {}, {}
        if self.path is not None and self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()

    def _write_to(self, descriptor: int) -> None:
        for number in self._numbers:
            os.dup2(descriptor, number)
        os.close(descriptor)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None
