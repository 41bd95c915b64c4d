"""Runs the harness: judges every job, and summarizes the verdicts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from lcjax.cli.startup import EXIT_CODES
from lcjax_scripts.verify.parity.accuracy import less_accurate
from lcjax_scripts.verify.parity.hunt import Caught, caught, survivors
from lcjax_scripts.verify.parity.jobs import Job
from lcjax_scripts.verify.parity.report.files import as_json
from lcjax_scripts.verify.parity.report.progress import MatrixProgress
from lcjax_scripts.verify.parity.report.summary import mutants_table, print_summary
from lcjax_scripts.verify.parity.sides import run_jobs
from lcjax_scripts.verify.parity.verdicts import Case, judge

Judged = list[tuple[Job, list[Case]]]


@dataclasses.dataclass(frozen=True)
class Findings:
    """The result of a run."""

    cases: list[Case]
    """The cases of the shapes without a mutant."""
    hunted: Caught
    """The ratio at which each mutant was caught, by implementation."""
    less_accurate: dict[str, float]
    """Where Pallas is less accurate than Triton over the whole matrix; empty for a part of it."""
    shapes: int
    """Number of shapes to be judged."""
    shapes_judged: int
    seconds: float
    machine: str
    """The processor and the versions."""

    @property
    def faults(self) -> list[str]:
        """Faults other than failed cases, one line each."""
        behind = [f"Pallas is less accurate than Triton, {x:.2f}: {name}" for name, x in self.less_accurate.items()]
        return survivors(self.hunted) + behind

    @property
    def interrupted(self) -> bool:
        return self.shapes_judged < self.shapes

    @property
    def exit_code(self) -> int:
        failed = any(case.failed for case in self.cases)
        return 1 if failed or self.faults else EXIT_CODES[signal.SIGINT] if self.interrupted else 0

    def as_json(self) -> dict[str, Any]:
        """Returns every verdict, with the machine and the versions."""
        facts = {
            "machine": self.machine,
            "seconds": self.seconds,
            "shapes": self.shapes,
            "shapes_judged": self.shapes_judged,
            "pallas_less_accurate": [*self.less_accurate],
        }
        return as_json(self.cases, self.hunted, facts)

    def print(self) -> None:
        """Prints the tables, the faults, and a line of counts."""
        console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
        print_summary(console, self.cases)
        if self.hunted:
            console.print(mutants_table(self.hunted))
        for fault in self.faults:
            console.print(fault, style="red")
        verdicts, failed = sum(len(c.verdicts) for c in self.cases), sum(c.failed for c in self.cases)
        print(f"{len(self.cases)} cases, {verdicts} verdicts, {failed} failed, {len(self.hunted)} mutants, "
              f"{len(survivors(self.hunted))} survived; {self.seconds:.0f} s")  # fmt: skip
        if self.interrupted:
            print(f"interrupted: {self.shapes_judged} of {self.shapes} shapes are judged", file=sys.stderr)


def examine(
    sound: Sequence[Job],
    planted: Sequence[Job] = (),
    *,
    alone: bool = False,
    whole: bool = False,
    jax_python: str = sys.executable,
) -> Findings:
    """Judges all jobs, or those that finish before Ctrl-C.

    Args:
      sound: jobs to be judged as cases.
      planted: jobs with a mutant that must be caught.
      alone: run one side after the other, each with the device to itself.
      whole: `sound` is a whole matrix. In a part of it, a difference of 10% between Pallas and
        Triton may be chance, so it is not checked.
      jax_python: runs JAX's side.
    """
    began = time.monotonic()
    jobs = [*sound, *planted]
    judged = run(jobs, alone=alone, jax_python=jax_python)
    hunts = {job.key for job in planted}
    cases = [case for job, of_job in judged if job.key not in hunts for case in of_job]
    return Findings(
        cases,
        caught([(job, of_job) for job, of_job in judged if job.key in hunts]),
        less_accurate(cases) if whole and len(judged) == len(jobs) else {},
        len(jobs),
        len(judged),
        round(time.monotonic() - began, 1),
        machine(jax_python),
    )


def run(jobs: Sequence[Job], *, alone: bool = False, jax_python: str = sys.executable) -> Judged:
    """Judges every job, or those that finish before Ctrl-C; returns them in the order given."""
    judged: Judged = []
    with (
        tempfile.TemporaryDirectory() as folder,
        MatrixProgress(Console(stderr=True), len(jobs)) as progress,
        contextlib.suppress(KeyboardInterrupt),
    ):
        for job, *sides in run_jobs(jobs, Path(folder), alone=alone, jax_python=jax_python):
            judged.append((job, judge(job, sides)))
            failed = sum(case.failed for done, cases in judged if done.mutant is None for case in cases)
            progress.judged(job.name, failed)
    order = {job.key: n for n, job in enumerate(jobs)}
    return sorted(judged, key=lambda pair: order[pair[0].key])


def machine(jax_python: str = sys.executable) -> str:
    """Returns the processor and the versions."""
    others = ("torch", "triton", "transformers", "peft")
    versions = {"jax": _version_in(jax_python, "jax")} | {name: version(name) for name in others}
    packages = ", ".join(f"{name} {found}" for name, found in versions.items())
    return f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores; {packages}"


def _version_in(python: str, package: str) -> str:
    if python == sys.executable:
        return version(package)
    program = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
