"""A last line on the terminal when a library ends the process, which Python cannot see."""

from __future__ import annotations

import contextlib
import subprocess
import sys

_PROGRAM = "import sys; line = sys.stdin.read().rpartition('\\n')[2]; line and print(line, file=sys.stderr)"


class LastWords:
    """A context; if the process ends inside of it, another process prints a line on its terminal.

    The other process reads the line from a pipe. The operating system closes the pipe when this
    process ends, whatever has ended it.
    """

    def __enter__(self) -> LastWords:
        # In a session of its own, because Ctrl-C would end it, too.
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        return self

    def will_be(self, line: str) -> None:
        """Sets the line; an empty one is not printed."""
        assert self._watcher.stdin is not None
        with contextlib.suppress(OSError):
            self._watcher.stdin.write(f"\n{line}")
            self._watcher.stdin.flush()

    def __exit__(self, *_: object) -> None:
        self.will_be("")
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._watcher.communicate(timeout=5)
