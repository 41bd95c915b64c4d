"""The longest context of each GPU, found by compiling the training step for it: writes docs/context.json and .md.

    python scripts/context_table.py                 # every row, about a quarter of an hour on two cores
    python scripts/context_table.py --only 70b      # rows whose model contains that; the others stay as they are

What has been compiled stays on disk (see `lcjax.plan.compile_cache`), so an interrupted run continues where it was.
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
    """Which rows to compute."""

    only: str = ""
    """Rows whose model, GPU or weights contain this; the others are taken from docs/context.json."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    start_quietly()
    context_table.update(arguments.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
