"""Checks that a refactoring changes no numbers, by comparing the working tree with a commit.

    python scripts/same_numbers.py main              # compare with main, about ten minutes
    python scripts/same_numbers.py main --only plan  # one part of the comparison

The following must be equal bit for bit: the metrics and the adapter of a training run, the verdicts
of the parity harness, the bytes that `lcjax.plan` reports, and the programs that it compiles for an
H100. Names and source locations in the programs are ignored. The exit code is 0 if everything is
equal, and 1 otherwise. Each side runs in separate processes on its own tree. Needs the extras
`ref`, `demo` and `plan`.
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
    """Compare only these parts."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    comparison = tyro.cli(Comparison, args=argv, description=__doc__)
    differing = 0
    for line in differences(comparison.commit, comparison.only or tuple(PARTS)):
        print(line, flush=True)
        differing += 1
    print(f"{differing} figures differ from {comparison.commit}" if differing else "all figures are equal")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
