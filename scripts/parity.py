"""Compares Pallas, Mosaic, XLA, Triton, cuDNN and torch with float64 on identical inputs.

    python scripts/parity.py --html parity.html
    python scripts/parity.py --mutants
    python scripts/parity.py --long  # a million tokens, and over 2^31 elements; needs 80 GB

A shape is an operation, a dtype, a head_dim, a GQA ratio, a length and a mask. A case is one
tensor (the value or a gradient) of one shape. It passes if the error of every implementation is at
most twice the error of plain PyTorch in the same dtype, plus rounding
(lcjax_scripts/verify/tolerance.py). Over the whole matrix, the error of Pallas may exceed that of
Triton by at most 10%. JAX and torch run in separate processes. Without a GPU, the kernels are
interpreted, which takes minutes; those of Mosaic need a newer JAX (--jax-python). Ctrl-C ends a run
and reports the cases judged so far. Needs the extra `ref`.
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
    """Use 494 shapes that cover every combination of three values of dtype, head_dim, GQA ratio,
    length, mask and positions. Takes hours on a CPU."""
    part: str = "1/1"
    """K/N: judge every N-th shape, starting with the K-th. The N parts make up the whole matrix."""
    rows: int | None = None
    """Minimum number of query rows of an attention shape. Shapes with fewer rows are repeated in a
    batch, because the largest error of few rows is a matter of chance. Default: 4,096 on a GPU; on
    a CPU 1,000 with --full (at most 256 heads per batch), otherwise 1."""
    long: bool = False
    """Instead of the matrix, judge some rows of sequences that are too long for a full reference.
    Needs a GPU with 80 GB."""
    shapes: tuple[str, ...] = ()
    """Only shapes whose name contains one of these, e.g. "bfloat16 d128" or "rope"."""
    mutants: bool = False
    """Instead of the matrix, inject each known bug into each implementation; all must be caught."""
    plant: str | None = None
    """Inject one mutant into every implementation of the matrix, to check that it is caught."""
    jax_python: Path = Path(sys.executable)
    """The Python of JAX's side. On a CPU, only JAX 0.11.2 or later interprets Mosaic's kernels. Use
    e.g. .venv-newest/bin/python, which `make test` makes."""
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
    findings = examine(sound, planted, alone=parity.long, whole=whole, jax_python=str(parity.jax_python))
    report = findings.as_json()
    if parity.json:
        parity.json.write_text(json.dumps(report, indent=1, allow_nan=False), encoding="utf-8")
    if parity.html:
        parity.html.write_text(page(report), encoding="utf-8")
    findings.print()
    return findings.exit_code


def check(parity: Parity) -> None:
    """Raises InputError for arguments that would fail only after minutes of running."""
    parse_part(parity.part)
    if parity.rows is not None and parity.rows < 1:
        raise InputError(f"--rows {parity.rows} must be at least 1; omit --rows for a default that suits the machine")
    for flag, path in (("--json", parity.json), ("--html", parity.html)):
        if path and not path.parent.is_dir():
            raise InputError(f"{flag} {path}: the directory {path.parent} does not exist")
    if not parity.jax_python.is_file():
        raise InputError(f"--jax-python {parity.jax_python} is not a file; use e.g. .venv-newest/bin/python")
    if parity.plant is not None and parity.plant not in MUTANTS:
        raise InputError(f"--plant {parity.plant!r} is unknown; use one of {', '.join(MUTANTS)}")
    if parity.mutants and (parity.full or parity.shapes or parity.plant):
        raise InputError("--mutants has its own shapes; omit --full, --shapes and --plant")
    if parity.long and (parity.full or parity.plant or parity.mutants):
        raise InputError("--long has its own shapes; omit --full, --mutants and --plant")


if __name__ == "__main__":
    sys.exit(main())
