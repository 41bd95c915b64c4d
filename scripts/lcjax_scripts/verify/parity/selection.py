"""Selects the shapes that a run judges, and how often each is repeated in a batch."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

import torch

from lcjax.errors import InputError
from lcjax.weights.demo import demo_model
from lcjax_scripts.verify import cases
from lcjax_scripts.verify.cases import ModelShape, Shapes, with_rows
from lcjax_scripts.verify.parity.jobs import Job

ROWS_ON_A_GPU = 4096
ROWS_OF_THE_FULL_MATRIX, HEADS_OF_THE_FULL_MATRIX = 1000, 256

_PART = re.compile(r"(\d+)/(\d+)")


def matrix_jobs(matrix: Shapes, names: Sequence[str] = (), part: str = "1/1", plant: str | None = None) -> list[Job]:
    """Returns the jobs of a matrix, in its order.

    Args:
      matrix: shapes by name.
      names: select the shapes whose name contains one of these; all shapes if empty.
      part: K/N selects every N-th of those, starting with the K-th.
      plant: a mutant that is injected into every implementation.

    Raises:
      InputError: `part` is not such a fraction, or no shape is selected.
    """
    first, count = parse_part(part)
    named = {n: s for n, s in matrix.items() if not names or any(name in n for name in names)}
    wanted = dict(itertools.islice(named.items(), first - 1, None, count))
    if not wanted:
        raise InputError(
            f"--shapes {' '.join(names)}: no shape's name contains that, or none of --part {part}; see "
            "scripts/lcjax_scripts/verify/cases/"
        )
    jobs = [Job(f"shape{n}", name, shape, plant) for n, (name, shape) in enumerate(wanted.items())]
    return [
        dataclasses.replace(job, model_file=demo_model()) if isinstance(job.shape, ModelShape) else job for job in jobs
    ]


def matrix_named(*, full: bool, long: bool) -> Shapes:
    """Returns the default matrix, the full one, or the one with very long sequences."""
    return cases.long_matrix() if long else cases.full_matrix() if full else cases.default_matrix()


def parse_part(part: str) -> tuple[int, int]:
    """Returns (K, N) of "K/N". Raises InputError for anything else, and unless 1 <= K <= N."""
    if not (found := _PART.fullmatch(part)) or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--part {part!r} is not understood; use K/N with K from 1 to N, e.g. 3/24")
    return int(found[1]), int(found[2])


def repeated(jobs: Sequence[Job], rows: int | None = None, *, full: bool = False) -> list[Job]:
    """Returns the jobs with about `rows` query rows each; the default depends on the machine."""
    on_a_cpu = (ROWS_OF_THE_FULL_MATRIX, HEADS_OF_THE_FULL_MATRIX) if full else (1, None)
    default = (ROWS_ON_A_GPU, None) if torch.cuda.is_available() else on_a_cpu
    rows, largest_heads = default if rows is None else (rows, None)
    return [dataclasses.replace(job, shape=with_rows(job.shape, rows, largest_heads)) for job in jobs]
