"""A last line on the terminal when a library ends the process, which Python cannot see."""

from __future__ import annotations

import contextlib
import subprocess
import sys

_PROGRAM = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"


class LastWords:
    """A context; if the process ends inside of it, another process prints `line` on its terminal.

    The other process waits for a word on a pipe. The operating system closes the pipe when this
    process ends, whatever has ended it.
    """

    def __init__(self, line: str):
        self._line = line

    def __enter__(self) -> LastWords:
        # In a session of its own, because Ctrl-C would end it, too.
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, self._line],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._watcher.communicate(b"done", timeout=5)
