"""Finds the longest context of each GPU by compiling; writes docs/context.json and context.md.

    python scripts/context_table.py             # every row, about 15 minutes on two cores
    python scripts/context_table.py --only 70b  # only rows whose model contains "70b"
    python scripts/context_table.py --only " x " --at-once 8  # only rows of several GPUs

Compiled programs are cached on disk (see `lcjax.plan.compiling.compile_cache`), so an interrupted
run resumes where it stopped.
"""

from __future__ import annotations

import dataclasses
import sys

import tyro

from lcjax.cli.entry import entry_point
from lcjax.plan.command import start_quietly
from lcjax_scripts.studies import context_table


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The rows to compute."""

    only: str = ""
    """Compute rows whose model, GPUs or weights contain this; copy the rest from context.json."""
    at_once: int = 1
    """Number of searches that run at the same time."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    start_quietly()
    context_table.update(arguments.only, arguments.at_once)
    return 0


if __name__ == "__main__":
    sys.exit(main())
