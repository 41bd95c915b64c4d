"""Sends the output of compiled libraries to a file.

XLA writes to file descriptor 2, bypassing Python and progress bars.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


class NativeLog:
    """A context in which file descriptor 2 is a file, and `sys.stderr` is still the terminal.

    The file is temporary until `move_to` gives it a path. If a library aborts the process, the file
    stays, so print its path before that can happen. At the end it is removed if it is empty.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._terminal: int | None = None
        self._replaced: TextIO | None = None

    def __enter__(self) -> NativeLog:
        descriptor, path = tempfile.mkstemp(prefix="lcjax-", suffix=".log")
        self.path = Path(path)
        sys.stderr.flush()
        self._terminal = os.dup(2)
        if _descriptor(sys.stderr) == 2:
            self._replaced = sys.stderr
            sys.stderr = open(
                os.dup(self._terminal), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace"
            )
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
        assert self._terminal is not None
        descriptor = os.dup(2)
        os.dup2(self._terminal, 2)
        try:
            yield
        finally:
            self._write_to(descriptor)

    def __exit__(self, *_: object) -> None:
        assert self._terminal is not None
        if self._replaced is not None:
            sys.stderr.close()
            sys.stderr, self._replaced = self._replaced, None
        self._write_to(self._terminal)
        self._terminal = None
        if self.path is not None and self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()

    @staticmethod
    def _write_to(descriptor: int) -> None:
        os.dup2(descriptor, 2)
        os.close(descriptor)


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None
