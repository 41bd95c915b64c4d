"""The kernels' parity: Pallas, XLA, Triton, cuDNN and torch on identical inputs, each compared with float64.

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

import dataclasses
import json
import sys
from pathlib import Path

import tyro

from lcjax.cli.entry import entry_point
from lcjax.errors import InputError
from lcjax_scripts.verify.mutants import MUTANTS
from lcjax_scripts.verify.parity.harness import examine
from lcjax_scripts.verify.parity.hunt import mutant_jobs
from lcjax_scripts.verify.parity.report.files import page
from lcjax_scripts.verify.parity.selection import matrix_jobs, matrix_named, parse_part, repeated


@dataclasses.dataclass(frozen=True)
class Parity:
    """Compares every implementation of the kernels with float64, case by case."""

    full: bool = False
    """Enough shapes that any three values of dtype, head_dim, group, length, mask or positions meet: 494, hours on a CPU."""
    part: str = "1/1"
    """K/N: every N-th shape from the K-th on; the N parts together are the whole."""
    rows: int | None = None
    """Query rows that an attention shape is repeated to, in a batch: with few rows its largest error is luck. By default
    4,096 on a GPU; on a CPU 1,000 with --full (at most 256 heads in a batch), else 1."""
    long: bool = False
    """Instead of the matrix, lengths of which only some rows can be judged; for a GPU of 80 GB."""
    shapes: tuple[str, ...] = ()
    """Only the shapes whose name contains one of these, e.g. "bfloat16 d128" or "rope"."""
    mutants: bool = False
    """Instead of the matrix, plant each known bug into each implementation; all have to be caught."""
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
    if parity.mutants:
        sound, planted = mutant_jobs()
    else:
        matrix = matrix_named(full=parity.full, long=parity.long)
        sound, planted = matrix_jobs(matrix, parity.shapes, parity.part, parity.plant), []
    sound, planted = (repeated(jobs, parity.rows, full=parity.full) for jobs in (sound, planted))
    whole = not (parity.shapes or parity.part != "1/1" or parity.mutants or parity.long)
    findings = examine(sound, planted, alone=parity.long, whole=whole)
    report = findings.as_json()
    if parity.json:
        parity.json.write_text(json.dumps(report, indent=1, allow_nan=False), encoding="utf-8")
    if parity.html:
        parity.html.write_text(page(report), encoding="utf-8")
    findings.print()
    return findings.exit_code


def check(parity: Parity) -> None:
    """Raises InputError for what would fail after minutes of running."""
    parse_part(parity.part)
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


if __name__ == "__main__":
    sys.exit(main())
