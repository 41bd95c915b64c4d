"""Whether two commits compute the same numbers: what a change that only moves code is held to.

    python scripts/same_numbers.py main               # the working tree against the commit main, about ten minutes
    python scripts/same_numbers.py main --only plan   # one part of the comparison

Compares bit for bit: the metrics and the adapter of a training run, the verdicts of the parity harness,
the bytes that `lcjax.plan` reports, and the programs that it compiles for an H100, without names and
source locations. Exits with 0 where all are equal and with 1 where one is not. Each side runs in
processes of its own, on its own tree. Needs the extras `ref`, `demo` and `plan`.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated, Literal

import tyro

from lcjax.cli.entry import entry_point
from lcjax_scripts.verify.same_numbers.compare import differences
from lcjax_scripts.verify.same_numbers.measure import PARTS


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Compares the working tree with a commit."""

    commit: Annotated[str, tyro.conf.Positional] = "main"
    """The commit to compare with."""
    only: tuple[Literal["plan", "training", "parity"], ...] = ()
    """Compare these parts alone."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    comparison = tyro.cli(Comparison, args=argv, description=__doc__)
    differing = 0
    for line in differences(comparison.commit, comparison.only or tuple(PARTS)):
        print(line, flush=True)
        differing += 1
    print(f"{differing} figures differ from {comparison.commit}" if differing else "every figure is the same")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
