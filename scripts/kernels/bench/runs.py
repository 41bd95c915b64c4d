"""Hands jobs to one process a side and passes on what comes back, with a progress bar."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from kernels.bench.jobs import Job, Result

SCRIPTS = Path(__file__).parents[2]


Provenance = dict[str, str]


def run(jobs: Sequence[Job], seconds: float) -> Iterator[tuple[Result, Provenance]]:
    """(a result, its machine and versions) of every job as soon as it is there, one side after the other."""
    run_of_all = {"commit": _commit(), "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("measuring", total=len(jobs))
        # One after the other, so that they do not disturb each other.
        for side in ("torch", "jax"):
            own = [job for job in jobs if job.side == side]
            if not own:
                continue
            provenance = run_of_all
            for line in _lines(side, own, seconds):
                if "job" not in line:
                    provenance = run_of_all | line
                    continue
                result = _result(line)
                own.remove(result.job)
                progress.update(bar, advance=1, description=f"{result.job.implementation} {result.job.part}")
                yield result, provenance
            for job in own:
                yield Result(job, None, None, "its process ended before"), provenance


def _lines(side: str, jobs: Sequence[Job], seconds: float) -> Iterator[dict]:
    path = os.pathsep.join([str(SCRIPTS), str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "kernels.bench.worker", side, str(seconds)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("".join(json.dumps(dataclasses.asdict(job)) + "\n" for job in jobs))
        process.stdin.close()
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)


def _result(line: dict) -> Result:
    job = line.pop("job")
    job["tile"] = None if job["tile"] is None else tuple(job["tile"])
    return Result(Job(**job), **line)


def _commit() -> str:
    done = subprocess.run(["git", "-C", SCRIPTS, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
