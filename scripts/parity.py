"""The kernels' parity: Pallas, XLA, Triton, cuDNN and torch on identical inputs, each held against float64.

    python scripts/parity.py --html parity.html
    python scripts/parity.py --mutants
    python scripts/parity.py --long                # a GPU of 80 GB: a million tokens, and more than 2^31 elements

A case is one tensor (the value or a gradient) of one shape: operation, dtype, head_dim, group of
heads, length and mask. It passes when the error of every implementation is at most twice that of
plain PyTorch in the same dtype, plus rounding (lcjax_scripts/verify/tolerance.py). Over the whole
matrix Pallas may not be less accurate than Triton by more than a tenth. JAX and torch run in separate
processes. Without a GPU the kernels are interpreted, which takes minutes. Ctrl-C ends a run with the
report of what it has judged so far. Needs the extra `ref`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import platform
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
import tyro
from rich.console import Console

from lcjax.cli.entry import entry_point
from lcjax.cli.startup import EXIT_CODES
from lcjax.errors import InputError
from lcjax.weights.demo import demo_model
from lcjax_scripts.verify.cases import ModelShape, default_matrix, full_matrix, long_matrix, with_rows
from lcjax_scripts.verify.mutants import MUTANTS
from lcjax_scripts.verify.parity.accuracy import less_accurate
from lcjax_scripts.verify.parity.hunt import caught, mutant_jobs, survivors
from lcjax_scripts.verify.parity.jobs import Job
from lcjax_scripts.verify.parity.report.files import as_json, page
from lcjax_scripts.verify.parity.report.progress import MatrixProgress
from lcjax_scripts.verify.parity.report.summary import mutants_table, print_summary
from lcjax_scripts.verify.parity.sides import run_jobs
from lcjax_scripts.verify.parity.verdicts import Case, judge

ROWS_ON_A_GPU = 4096
ROWS_OF_THE_FULL_MATRIX, HEADS_OF_THE_FULL_MATRIX = 1000, 256

_PART = re.compile(r"(\d+)/(\d+)")

Judged = list[tuple[Job, list[Case]]]


@dataclasses.dataclass(frozen=True)
class Parity:
    """Holds every implementation of the kernels against float64, case by case."""

    full: bool = False
    """So many shapes that every three values meet of dtype, head_dim, group, length, mask or positions: 494, hours on a CPU."""
    part: str = "1/1"
    """K/N: only the K-th of N parts, to which the shapes are dealt in turn; all N together are the whole."""
    rows: int | None = None
    """Query rows that a shape of attention is repeated to, in a batch: with few, its largest error is luck. 4,096 on a GPU; on a
    CPU, where they take their time, 1,000 with --full (256 heads in a batch at most), else 1."""
    long: bool = False
    """Instead of the matrix, lengths that only some rows of can be judged; for a GPU of 80 GB."""
    shapes: tuple[str, ...] = ()
    """Only the shapes whose name contains one of these, e.g. "bfloat16 d128" or "rope"."""
    mutants: bool = False
    """Instead of the matrix, plant known bugs into each implementation in turn; all have to be caught."""
    plant: str | None = None
    """Plant one of the mutants into every implementation of the matrix, to see the harness find it."""
    json: Path | None = None
    """Also write every verdict to this file."""
    html: Path | None = None
    """Also write a page with a heat map to this file."""


@entry_point
def main(argv: list[str] | None) -> int:
    parity = tyro.cli(Parity, args=argv, description=__doc__)
    check(parity)
    began = time.monotonic()
    sound, planted = mutant_jobs() if parity.mutants else (matrix_jobs(parity), [])
    sound, planted = (repeated(parity, jobs) for jobs in (sound, planted))
    jobs = sound + planted
    judged = run(jobs, alone=parity.long)
    interrupted = len(judged) < len(jobs)
    hunts = {job.key for job in planted}
    cases = [case for job, of_job in judged if job.key not in hunts for case in of_job]
    hunted = caught([(job, of_job) for job, of_job in judged if job.key in hunts])
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    print_summary(console, cases)
    if hunted:
        console.print(mutants_table(hunted))
    # Over the matrix: in a few cases a tenth is luck.
    some = interrupted or parity.shapes or parity.part != "1/1" or parity.mutants or parity.long
    behind = {} if some else less_accurate(cases)
    facts = {
        "machine": machine(),
        "seconds": round(time.monotonic() - began, 1),
        "shapes": len(jobs),
        "shapes_judged": len(judged),
        "pallas_less_accurate": [*behind],
    }
    report = as_json(cases, hunted, facts)
    write(parity, report)
    faults = survivors(hunted) + [f"Pallas is less accurate than Triton, {x:.2f}: {name}" for name, x in behind.items()]
    for fault in faults:
        console.print(fault, style="red")
    print(f"{report['cases']} cases, {report['verdicts']} verdicts, {report['failed']} failed, "
          f"{len(hunted)} mutants, {len(survivors(hunted))} survived; {report['seconds']:.0f} s")  # fmt: skip
    if interrupted:
        print(f"interrupted: {len(judged)} of {len(jobs)} shapes are judged", file=sys.stderr)
    return 1 if report["failed"] or faults else EXIT_CODES[signal.SIGINT] if interrupted else 0


def check(parity: Parity) -> None:
    """Raises InputError for what would fail after minutes of running."""
    if not (found := _PART.fullmatch(parity.part)) or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--part {parity.part!r} is not understood; use K/N with K from 1 to N, e.g. 3/24")
    if parity.rows is not None and parity.rows < 1:
        raise InputError(f"--rows {parity.rows}: a shape has at least one; leave --rows out for what suits the machine")
    for flag, path in (("--json", parity.json), ("--html", parity.html)):
        if path and not path.parent.is_dir():
            raise InputError(f"{flag} {path}: the directory {path.parent} does not exist")
    if parity.plant is not None and parity.plant not in MUTANTS:
        raise InputError(f"--plant {parity.plant!r} is unknown; use one of {', '.join(MUTANTS)}")
    if parity.mutants and (parity.full or parity.shapes or parity.plant):
        raise InputError("--mutants has shapes of its own: leave --full, --shapes and --plant out")
    if parity.long and (parity.full or parity.plant or parity.mutants):
        raise InputError("--long has shapes of its own: leave --full, --mutants and --plant out")


def matrix_jobs(parity: Parity) -> list[Job]:
    """The work of a run, in the order of the table.

    Raises:
      InputError: no shape has such a name.
    """
    matrix = long_matrix() if parity.long else full_matrix() if parity.full else default_matrix()
    wanted = {n: s for n, s in matrix.items() if not parity.shapes or any(part in n for part in parity.shapes)}
    first, count = map(int, parity.part.split("/"))
    wanted = dict(itertools.islice(wanted.items(), first - 1, None, count))
    if not wanted:
        raise InputError(
            f"--shapes {' '.join(parity.shapes)}: no shape's name contains that, or none of --part {parity.part}; see "
            "scripts/lcjax_scripts/verify/cases/"
        )
    jobs = [Job(f"shape{n}", name, shape, parity.plant) for n, (name, shape) in enumerate(wanted.items())]
    return [
        dataclasses.replace(job, model_file=demo_model()) if isinstance(job.shape, ModelShape) else job for job in jobs
    ]


def repeated(parity: Parity, jobs: Sequence[Job]) -> list[Job]:
    """The jobs with as many query rows as `--rows` asks for, or as suit the machine."""
    on_a_cpu = (ROWS_OF_THE_FULL_MATRIX, HEADS_OF_THE_FULL_MATRIX) if parity.full else (1, None)
    by_itself = (ROWS_ON_A_GPU, None) if torch.cuda.is_available() else on_a_cpu
    rows, largest_heads = by_itself if parity.rows is None else (parity.rows, None)
    return [dataclasses.replace(job, shape=with_rows(job.shape, rows, largest_heads)) for job in jobs]


def run(jobs: Sequence[Job], *, alone: bool = False) -> Judged:
    """Every job judged, or those until Ctrl-C, in the order given; `alone`: one side after the other."""
    judged: Judged = []
    with (
        tempfile.TemporaryDirectory() as folder,
        MatrixProgress(Console(stderr=True), len(jobs)) as progress,
        contextlib.suppress(KeyboardInterrupt),
    ):
        for job, *sides in run_jobs(jobs, Path(folder), alone=alone):
            judged.append((job, judge(job, sides)))
            failed = sum(case.failed for done, cases in judged if done.mutant is None for case in cases)
            progress.judged(job.name, failed)
    order = {job.key: n for n, job in enumerate(jobs)}
    return sorted(judged, key=lambda pair: order[pair[0].key])


def write(parity: Parity, report: dict) -> None:
    if parity.json:
        parity.json.write_text(json.dumps(report, indent=1, allow_nan=False), encoding="utf-8")
    if parity.html:
        parity.html.write_text(page(report), encoding="utf-8")


def machine() -> str:
    """What the figures were found on."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "torch", "triton", "transformers", "peft"))
    return f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores; {packages}"


if __name__ == "__main__":
    sys.exit(main())
