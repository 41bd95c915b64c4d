"""A short summary for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lcjax_scripts.verify.parity.accuracy import LARGEST_QUOTIENT, pallas_over_triton
from lcjax_scripts.verify.parity.verdicts import PEERS, Case

IMPLEMENTATIONS = ("pallas", "mosaic", "triton", "xla", "cudnn", "fa3", "sdpa")
MOST_LINES = 12


def worst(cases: Iterable[Case], implementation: str) -> tuple[float, Case] | None:
    """Returns the largest error ratio of an implementation and its case; None if it has no case."""
    ratios = [(c.verdicts[implementation].ratio, c) for c in cases if implementation in c.verdicts]
    return max(ratios, key=lambda pair: pair[0], default=None)


def present(cases: Iterable[Case]) -> list[str]:
    """Returns the implementations that were run, in the order of the report."""
    seen = {name for case in cases for name in case.verdicts}
    return [*(name for name in IMPLEMENTATIONS if name in seen), *sorted(seen - set(IMPLEMENTATIONS))]


def print_summary(console: Console, cases: Sequence[Case]) -> None:
    """Prints the worst ratio per operation and implementation, Pallas over Triton, and failures."""
    names = present(cases)
    table = Table(title="worst error over allowance (a case passes up to 1)", title_justify="left")
    table.add_column("operation")
    table.add_column("cases", justify="right")
    for name in names:
        table.add_column(f"{name} (peer)" if name in PEERS else name, justify="right")
    for operation in dict.fromkeys(case.operation for case in cases):
        of_it = [case for case in cases if case.operation == operation]
        table.add_row(operation, str(len(of_it)), *(_cell(of_it, name) for name in names))
    console.print(table)
    for line in absences(cases):
        console.print(Text(line, style="dim"))
    quotients = pallas_over_triton(cases)
    if quotients:
        console.print(
            f"error of Pallas over Triton's (over the matrix at most {LARGEST_QUOTIENT}): " + _joined(quotients)
        )
    for line in failures(cases)[:MOST_LINES]:
        console.print(Text(line, style="red"))
    if len(failures(cases)) > MOST_LINES:
        console.print(f"... and {len(failures(cases)) - MOST_LINES} more; --json and --html have them all")


def absences(cases: Iterable[Case]) -> list[str]:
    """Returns a line for each implementation that supports no case, if the reason is the same."""
    cases = list(cases)
    ran, reasons = present(cases), {}
    for case in cases:
        for name in case.refused.keys() - ran:
            reasons.setdefault(name, set()).add(case.refused[name])
    return [f"{name} has no case: {', '.join(found)}" for name, found in reasons.items() if len(found) == 1]


def failures(cases: Iterable[Case]) -> list[str]:
    """Returns a line for every failed verdict except those of peers, the worst first."""
    failed = [
        (verdict.ratio, f"{name} failed: {case.name}, {case.tensor}: {verdict.fault or _numbers(verdict)}")
        for case in cases
        for name, verdict in case.verdicts.items()
        if verdict.failed and name not in PEERS
    ]
    return [line for _, line in sorted(failed, key=lambda pair: -pair[0])]


def mutants_table(caught: Mapping[str, Mapping[str, float | None]]) -> Table:
    """Returns a table of the ratio at which each mutant was caught or survived."""
    names = list(dict.fromkeys(name for row in caught.values() for name in row))
    table = Table(title="mutants: least error over allowance among their shapes (caught above 1)", title_justify="left")
    table.add_column("planted bug")
    for name in names:
        table.add_column(name, justify="right")
    for mutant, row in caught.items():
        table.add_row(mutant, *(_mutant_cell(row[name]) if name in row else "" for name in names))
    return table


def _mutant_cell(ratio: float | None) -> Text:
    if ratio is None:
        return Text("refuses such calls", style="dim")
    return Text(f"{ratio:.3g}") if ratio > 1 else Text(f"survived at {ratio:.3g}", style="red")


def _cell(cases: Sequence[Case], implementation: str) -> Text:
    found = worst(cases, implementation)
    if found is None:
        return Text("-", style="dim")
    failed = sum(case.verdicts[implementation].failed for case in cases if implementation in case.verdicts)
    style = "red" if failed and implementation not in PEERS else ""
    above = f" ({failed} above)" if failed else ""
    return Text(f"{found[0]:.2f}{above}" if math.isfinite(found[0]) else f"inf{above}", style=style)


def _numbers(verdict) -> str:
    return f"{verdict.largest:.3f} in the largest, {verdict.root_mean_square:.3f} in the root-mean-square error"


def _joined(quotients: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in quotients.items())
