"""Mutants: the jobs that inject them, and whether they are caught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lcjax_scripts.verify.mutants import MUTANTS
from lcjax_scripts.verify.parity.jobs import Job
from lcjax_scripts.verify.parity.verdicts import Case, Verdict

Caught = dict[str, dict[str, float | None]]


def mutant_jobs() -> tuple[list[Job], list[Job]]:
    """Returns (every shape without a mutant, every shape with each of its mutants)."""
    shapes = {name: shape for mutant in MUTANTS.values() for name, shape in mutant.shapes.items()}
    sound = [Job(f"sound{n}", name, shape) for n, (name, shape) in enumerate(shapes.items())]
    planted = [
        Job(f"mutant{n}-{m}", name, shape, mutant)
        for n, (mutant, of_it) in enumerate(MUTANTS.items())
        for m, (name, shape) in enumerate(of_it.shapes.items())
    ]
    return sound, planted


def caught(planted: Sequence[tuple[Job, Sequence[Case]]]) -> Caught:
    """Returns, by mutant and implementation, the minimum over the shapes of the worst ratio.

    It is above 1 if every shape caught the mutant, and None if the implementation refuses all of
    the shapes. Peers are included, because the bug is in the inputs.
    """
    found: Caught = {}
    for job, cases in planted:
        assert job.mutant is not None
        row = found.setdefault(job.mutant, {})
        for name in dict.fromkeys(name for case in cases for name in (*case.verdicts, *case.refused)):
            ratios = [_ratio(case.verdicts[name]) for case in cases if name in case.verdicts]
            known = [x for x in (row.get(name), max(ratios, default=None)) if x is not None]
            row[name] = min(known, default=None)
    return found


def survivors(found: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Returns a line for each mutant that was not caught."""
    return [
        f"{mutant} survived in {name} at {ratio:.3g}"
        for mutant, row in found.items()
        for name, ratio in row.items()
        if ratio is not None and not ratio > 1
    ]


def _ratio(verdict: Verdict) -> float:
    """Returns the ratio of a verdict, or 0 for an error: an error does not show a wrong result."""
    return verdict.ratio if verdict.fault is None else 0.0
