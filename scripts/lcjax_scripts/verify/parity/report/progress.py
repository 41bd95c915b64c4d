"""The progress of a run: a live bar on a terminal, and otherwise a line every minute."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 60


class MatrixProgress:
    """A context that shows the number of judged shapes, the last one, and the failed cases."""

    def __init__(self, console: Console, shapes: int, clock: Callable[[], float] = time.monotonic):
        self._console = console
        self._shapes = shapes
        self._clock = clock
        self._judged = 0
        self._began = self._said = clock()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=shapes)

    def __enter__(self) -> MatrixProgress:
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def judged(self, name: str, failed: int) -> None:
        """Records that a shape was judged; `failed` is the number of failed cases so far."""
        self._judged += 1
        self._bar.update(self._task, advance=1, description=f"{name[:40]:40} {failed} failed")
        now = self._clock()
        if not self._console.is_terminal and now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            passed = f"{self._judged}/{self._shapes} shapes, {failed} failed, {(now - self._began) / 60:.0f} min"
            self._console.print(passed, highlight=False)
