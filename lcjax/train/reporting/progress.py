"""Shows the progress of a run: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lcjax.cli.terminal import say


class TrainingProgress:
    """A context that shows a step's numbers and the time left.

    The peak of device memory is omitted if the device does not report it.
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

    def update(self, row: dict[str, Any]) -> None:
        """Shows the numbers of a finished step, from its row in metrics.jsonl."""
        step, shown = row["step"], figures(row)
        self._bar.update(self._task, completed=step, figures=shown)
        if not self._console.is_terminal and step % self._logging_steps == 0:
            say(self._console, f"step {step}/{self._max_steps}  {shown}")


def figures(row: dict[str, Any]) -> str:
    """A step's row in a few words; what it does not have is left out."""
    parts = [f"loss {row['loss']:.4f}", f"{row['tokens_per_second']:,.0f} tok/s"]
    if "epoch" in row:
        parts.append(f"epoch {row['epoch']:.2f}")
    if "mfu" in row:
        parts.append(f"MFU {row['mfu']:.0%}")
    for name, field in (("peak", "device_memory_peak_bytes"), ("host", "host_memory_bytes")):
        if field in row:
            parts.append(f"{name} {row[field] / 2**30:.1f} GiB")
    return "  ".join(parts)
