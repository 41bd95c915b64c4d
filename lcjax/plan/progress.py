"""What is being compiled, shown on standard error while it takes its seconds."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lcjax.plan.workload import Workload


class CompilationProgress:
    """A context with a bar that goes when it ends; shows nothing where standard error is no terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("compilation {task.fields[count]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._count = 0
        self._task = self._bar.add_task("planning", total=None, count=0)

    def __enter__(self) -> CompilationProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def compiling(self, workload: Workload, tokens: int) -> None:
        """Shows the next compilation."""
        self._count += 1
        self._bar.update(self._task, description=f"{tokens:,} tokens on {workload.gpu}", count=self._count)
