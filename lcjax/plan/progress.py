"""Shows on standard error what is being compiled."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lcjax.cli.terminal import say
from lcjax.plan.planner import Plan
from lcjax.plan.workload import Workload


class CompilationProgress:
    """A context manager that shows one line on a terminal, and removes it at the end.

    If standard error is not a terminal, it prints a line for each compilation instead. The number
    of compilations is not known in advance, so there is no progress bar.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._line = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._count = 0
        self._fits: dict[str, int] = {}
        self._fails: dict[str, int] = {}
        self._task = self._line.add_task("planning", total=None)

    def __enter__(self) -> CompilationProgress:
        self._line.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._line.stop()

    def compiling(self, workload: Workload, tokens: int) -> None:
        """Shows which compilation starts, and the longest context known so far."""
        self._count += 1
        line = f"compilation {self._count}: {tokens:,} tokens on {workload.gpu}{self._bounds(workload.gpu)}"
        if self._console.is_terminal:
            self._line.update(self._task, description=line)
        else:
            say(self._console, line)

    def compiled(self, plan: Plan) -> None:
        """Records a result, for what `compiling` shows."""
        gpu, tokens = plan.workload.gpu, plan.max_seq_length
        if plan.fits:
            self._fits[gpu] = max(tokens, self._fits.get(gpu, 0))
        else:
            self._fails[gpu] = min(tokens, self._fails.get(gpu, tokens))

    def _bounds(self, gpu: str) -> str:
        known = [f"{self._fits[gpu]:,} tokens fit"] if gpu in self._fits else []
        if gpu in self._fails and self._fails[gpu] > self._fits.get(gpu, 0):
            known.append(f"{self._fails[gpu]:,} did not")
        return f" ({', '.join(known)})" if known else ""
