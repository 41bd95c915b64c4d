"""Processes that are measured one at a time, while the next ones prepare.

A process prints READY when it has finished everything that needs no device, and waits for a line on
its standard input. Then it measures, prints its result as JSON, and exits.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_ERROR = re.compile(r"[\w.]*(Error|Exception)\b")

READY = "ready"

Row = dict[str, Any]


def wait_for_turn() -> None:
    """Called in a process: reports that it is ready, and returns when it may use the device."""
    print(READY, flush=True)
    sys.stdin.readline()


def measured(
    rows: Sequence[Row],
    command_of: Callable[[Row], Sequence[str]],
    environment: Mapping[str, str],
    *,
    ahead: int,
) -> Iterator[tuple[Row, Row]]:
    """Yields (row, result) in the order of the rows; up to `ahead` rows prepare meanwhile.

    The result of a process that fails is {"error": its error message, or the last line it printed}.
    """
    started: dict[int, _Process] = {}
    try:
        for n, row in enumerate(rows):
            process = started.pop(n, None) or _Process(command_of(row), environment)
            process.wait_until_ready()
            for later in range(n + 1, min(n + 1 + ahead, len(rows))):
                if later not in started:
                    started[later] = _Process(command_of(rows[later]), environment)
            yield row, process.go()
    finally:
        for process in started.values():
            process.kill()


class _Process:
    def __init__(self, command: Sequence[str], environment: Mapping[str, str]):
        # A file, because a pipe that is not read could fill up and block the process.
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 closed after the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env={**environment},
        )

    def wait_until_ready(self) -> None:
        """Waits until the process is ready or has died."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == READY:
                return

    def go(self) -> Row:
        try:
            output, _ = self._process.communicate("\n")
        except BrokenPipeError:  # the process has died
            output = ""
        returned = self._process.wait()
        lines, said = output.splitlines(), self._last_line_of_stderr()
        if returned == 0 and lines:
            return json.loads(lines[-1])
        return {"error": said[:300] or f"ended with {returned}"}

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def _last_line_of_stderr(self) -> str:
        self._stderr.seek(0)
        with self._stderr:
            lines = self._stderr.read().strip().splitlines() or [""]
            # After an error message, libraries may print the source location of the error.
            return next((line for line in reversed(lines) if _ERROR.match(line)), lines[-1])
