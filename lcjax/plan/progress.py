"""What is being compiled, shown on standard error while it takes its seconds."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lcjax.cli.terminal import say
from lcjax.plan.planner import Plan
from lcjax.plan.workload import Workload


class CompilationProgress:
    """A context with a line that goes when it ends, and lines that stay where standard error is no terminal.

    How many compilations there will be nobody knows, so there is no bar.
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
        """Shows the next compilation, and what is known of the longest context by then."""
        self._count += 1
        line = f"compilation {self._count}: {tokens:,} tokens on {workload.gpu}{self._bounds(workload.gpu)}"
        if self._console.is_terminal:
            self._line.update(self._task, description=line)
        else:
            say(self._console, line)

    def compiled(self, plan: Plan) -> None:
        """Takes a result into what `compiling` shows."""
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
