"""Runs jobs in one process per side, with a progress bar."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import Progress

from lcjax_scripts.bench.kernels.jobs import Job, Result
from lcjax_scripts.paths import TREE, python_path

Provenance = dict[str, str]


def run(jobs: Sequence[Job], seconds: float) -> Iterator[tuple[Result, Provenance]]:
    """Yields (result, machine and versions) of every job, in the order of the jobs.

    Jobs to be compared should be next to each other, because a GPU at its power limit becomes
    slower over time.
    """
    run_of_all = {"commit": _commit(), "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    workers: dict[str, Worker] = {}
    with contextlib.ExitStack() as stack, Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("measuring", total=len(jobs))
        for job in jobs:
            # A process that never printed a line, for example because its library is missing, is
            # not started again.
            if job.side not in workers or (workers[job.side].ended and workers[job.side].provenance):
                workers[job.side] = stack.enter_context(Worker(job.side, seconds))
            progress.update(bar, description=f"{job.implementation} {job.part}")
            result = workers[job.side].measure(job)
            progress.update(bar, advance=1)
            yield result, run_of_all | workers[job.side].provenance


class Worker:
    """The process of one side, which waits for jobs."""

    def __init__(self, side: str, seconds: float):
        # The processes of both sides share the GPU, so JAX must not preallocate its memory.
        environment = {"PYTHONPATH": python_path(), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        command = [sys.executable, "-m", "lcjax_scripts.bench.kernels.worker", side, str(seconds)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )
        self.ended = False
        self.provenance: Provenance = self._line() or {}

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def measure(self, job: Job) -> Result:
        """Returns the result of a job, or an error if the process dies."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
            self._process.stdin.flush()
        line = self._line()
        return Result(job, None, None, "its process ended") if line is None else _result(line)

    def _line(self) -> dict | None:
        """Returns the next message of the process, or None if it has ended."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self.ended = True
        return None


def _result(line: dict) -> Result:
    job = line.pop("job")
    job["tile"] = None if job["tile"] is None else tuple(job["tile"])
    return Result(Job(**job), **line)


def _commit() -> str:
    done = subprocess.run(["git", "-C", TREE, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
