"""Measures time, model FLOPs and memory of a large model's training step on a GPU.

    python scripts/bench_step.py --lengths 16384 32768 --settings "full none" "offload tile=8192"
    python scripts/bench_step.py --lengths 16384 --quantize none --peft  # and transformers + PEFT
    python scripts/bench_step.py --lengths 131072 --meshes 1x1x1 1x1x2  # one and two GPUs

The weights are random, and the batch is one sequence for each part of the mesh along `data`. Every
row of the table runs in a separate process, so that peak memory is measured for that row alone, and
running out of memory does not affect the other rows. A row shows the seconds of the fastest step,
tokens per second, model FLOPs as a fraction of the GPUs' peak (MFU), peak and predicted memory of
one device in GiB, and pinned host memory in GiB for each device. With --ahead, the next rows are
traced while one is timed. They are compiled only when they have the device to themselves, because
XLA runs algorithms on the device to choose one.
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
    """The steps to time, each on one sequence."""

    lengths: tuple[int, ...] = (16_384,)
    """Tokens per sequence."""
    settings: tuple[str, ...] = ("auto auto",)
    """Pairs of gradient checkpointing and --memory, such as "offload tile=8192,head_groups=8"."""
    quantizations: tuple[Literal["nf4", "none"], ...] = ()
    """Combine every setting with each of these, instead of with --quantize."""
    attentions: tuple[str, ...] = ()
    """Combine every setting with each of these implementations, instead of with --attention."""
    meshes: tuple[str, ...] = ()
    """Combine every setting with each of these meshes, instead of with --mesh."""
    ahead: int = 0
    """Number of rows that are traced while another is timed. Each uses 0.5 GiB of the device."""
    steps: int = 2
    """Timed steps after one warm-up step. With 0, the first step is timed, allocations included;
    this is for steps that take minutes."""
    peft: bool = False
    """Also time transformers + PEFT: bfloat16, gradient checkpointing, torch's attention."""
    csv: Path | None = None
    """Append every row, with the machine and versions, to this file."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    bench = tyro.cli(Bench, args=argv, description=__doc__)
    print(*(f"{name} {version(name)}" for name in ("jax", "flax", "optax")), flush=True)
    rows = rows_of(
        bench, bench.lengths, bench.settings, bench.quantizations, bench.attentions, bench.meshes, peft=bench.peft
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            # Reuse the algorithms that XLA chose in an earlier process.
            "JAX_COMPILATION_CACHE_DIR": cache,
            # Otherwise a remark about filtering is the last line of an error.
            "JAX_TRACEBACK_FILTERING": "off",
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
