"""Shows the progress of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lcjax.cli.terminal import say
from lcjax.parallel.placement import this_device


class TrainingProgress:
    """A context that shows step, loss, tokens per second, time left and peak device memory.

    The peak is omitted if the device does not report it.
    """

    def __init__(self, console: Console, start: int, max_steps: int, logging_steps: int):
        self._console = console
        self._logging_steps = logging_steps
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=max_steps, completed=start, figures="compiling")
        self._start, self._max_steps = start, max_steps

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        if not self._console.is_terminal and self._start < self._max_steps:
            say(self._console, "compiling the training step and taking the first")
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Shows the numbers of a finished step."""
        figures = f"loss {loss:.4f}  {tokens_per_second:,.0f} tok/s{peak_device_memory()}"
        self._bar.update(self._task, completed=step, figures=figures)
        if not self._console.is_terminal and step % self._logging_steps == 0:
            say(self._console, f"step {step}/{self._max_steps}  {figures}")


def peak_device_memory() -> str:
    """Peak memory of the first device as "  peak 12.3 GiB", or "" if it is unknown."""
    return memory_column(this_device().memory_stats())


def memory_column(statistics: dict[str, int] | None) -> str:
    """The text for a result of `jax.Device.memory_stats`."""
    peak = (statistics or {}).get("peak_bytes_in_use")
    return f"  peak {peak / 2**30:.1f} GiB" if peak else ""
