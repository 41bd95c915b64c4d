"""Shows the progress of reading and encoding data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lcjax.cli.terminal import say

# Work that takes less than about half a second needs no separate line.
SHORT_CHARACTERS = 1_000_000
SECONDS_BETWEEN_LINES = 60.0


@contextlib.contextmanager
def progress_of(console: Console | None, what: str, characters: int) -> Iterator[Callable[[int], None]]:
    """Shows the progress of work on a text; call the yielded function with the characters done.

    On a terminal it is a bar. Elsewhere it is one line at the start of long work, and one each
    minute.
    """
    if console is None:
        yield lambda done: None
    elif console.is_terminal:
        columns = (TextColumn(what), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=characters)
            yield lambda done: bar.update(task, advance=done)
    else:
        yield _Lines(console, what, characters).advance


class _Lines:
    """One line at the start, and one each minute."""

    def __init__(self, console: Console, what: str, characters: int):
        self._console, self._what, self._characters = console, what, characters
        self._done = 0
        self._last = time.monotonic()
        if characters >= SHORT_CHARACTERS:
            say(console, f"{what} {characters:,} characters of text")

    def advance(self, done: int) -> None:
        self._done += done
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES and self._done < self._characters:
            self._last = time.monotonic()
            say(self._console, f"{self._what}: {self._done / self._characters:.0%}")
