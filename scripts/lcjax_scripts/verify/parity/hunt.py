"""Mutants: the jobs that plant each, and whether it was caught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lcjax_scripts.verify.mutants import MUTANTS
from lcjax_scripts.verify.parity.jobs import Job
from lcjax_scripts.verify.parity.verdicts import Case, Verdict

Caught = dict[str, dict[str, float | None]]


def mutant_jobs() -> tuple[list[Job], list[Job]]:
    """(every shape as it is, every shape with each of its mutants)."""
    shapes = {name: shape for mutant in MUTANTS.values() for name, shape in mutant.shapes.items()}
    sound = [Job(f"sound{n}", name, shape) for n, (name, shape) in enumerate(shapes.items())]
    planted = [
        Job(f"mutant{n}-{m}", name, shape, mutant)
        for n, (mutant, of_it) in enumerate(MUTANTS.items())
        for m, (name, shape) in enumerate(of_it.shapes.items())
    ]
    return sound, planted


def caught(planted: Sequence[tuple[Job, Sequence[Case]]]) -> Caught:
    """By mutant and implementation the least, over the mutant's shapes, of the worst ratio: above 1 where every shape caught it.

    None for an implementation that refuses all of the shapes. Peers are hunted too: the bug is planted in the harness' call.
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
    """What was not caught, a line each."""
    return [
        f"{mutant} survived in {name} at {ratio:.3g}"
        for mutant, row in found.items()
        for name, ratio in row.items()
        if ratio is not None and not ratio > 1
    ]


def _ratio(verdict: Verdict) -> float:
    """An implementation that dies of a call has not been seen to compute it wrongly."""
    return verdict.ratio if verdict.fault is None else 0.0
