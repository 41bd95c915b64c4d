"""A training step of a large model with random weights on a GPU: time, model FLOPs, planned and used memory.

    python scripts/bench_step.py --lengths 16384 32768 --settings "full none" "offload tile=8192" --csv steps.csv
    python scripts/bench_step.py --lengths 16384 --quantize none --peft        # compared with transformers + PEFT

Every row runs in a process of its own, so that its peak is its own and running out of memory ends no
other row. The batch is one sequence. Prints seconds of the fastest step, tokens a second, model FLOPs
as a fraction of the GPU's peak, GiB at the peak next to what the compiler predicted, and GiB of pinned
host memory. With --ahead the next rows are traced while one is timed. They compile only when the
device is theirs, since XLA tries algorithms out on it.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import tyro

from lcjax.cli.entry import entry_point
from lcjax_scripts.bench.steps.rows import append_csv, line_of, rows_of
from lcjax_scripts.bench.steps.sequential import measured
from lcjax_scripts.bench.steps.shape import Shape
from lcjax_scripts.bench.steps.worker import command_of
from lcjax_scripts.paths import python_path


@dataclasses.dataclass(frozen=True)
class Bench(Shape):
    """Which steps to time, one sequence each."""

    lengths: tuple[int, ...] = (16_384,)
    """Tokens of a sequence."""
    settings: tuple[str, ...] = ("auto auto",)
    """Gradient checkpointing and --memory, as a pair in one word each: "offload tile=8192,head_groups=8"."""
    quantizations: tuple[Literal["nf4", "none"], ...] = ()
    """Every setting with each of these, instead of --quantize."""
    attentions: tuple[str, ...] = ()
    """Every setting with each of these implementations, instead of --attention."""
    ahead: int = 0
    """How many rows are traced while one is timed; each holds half a GiB of the device."""
    steps: int = 2
    """Timed steps, after one that warms up; 0 times that one, its first allocations included, where a step takes minutes."""
    peft: bool = False
    """Also time transformers + PEFT with gradient checkpointing and torch's attention, in bfloat16."""
    csv: Path | None = None
    """Append every row, with machine and versions, to this file."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    bench = tyro.cli(Bench, args=argv, description=__doc__)
    print(*(f"{name} {version(name)}" for name in ("jax", "flax", "optax")), flush=True)
    rows = rows_of(bench, bench.lengths, bench.settings, bench.quantizations, bench.attentions, peft=bench.peft)
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache,  # with the algorithms that XLA chose, for the next process
            "JAX_TRACEBACK_FILTERING": "off",  # else a remark on filtering is the last line of an error
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": python_path(),
        }
        results = measured(list(rows), lambda row: command_of(bench, row, bench.steps), environment, ahead=bench.ahead)
        for row, result in results:
            print(line_of(row | result), flush=True)
            if bench.csv:
                append_csv(bench.csv, row | result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
