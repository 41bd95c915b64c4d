"""Measures the attention and RoPE kernels and compares them with all installed implementations.

    python scripts/bench_kernels.py --lengths 2048 16384 --csv kernels.csv --plot roofline.png
    python scripts/bench_kernels.py --sweep --lengths 16384  # try block sizes

JAX and torch run in separate processes, on the same shapes and with the same timing code.
Implementations that are compared run one directly after another. The table shows milliseconds,
TFLOP/s, peak memory in addition to the inputs, and speed relative to the fastest Triton kernel.
FLOPs follow the usual convention: causal attention counts half of the products, and the backward
pass counts 2.5 times the forward pass. Only the forward pass of RoPE is measured, because the
backward pass is the same kernel. Without a GPU, the script measures what runs on the CPU, which
says nothing about the kernels.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import tyro

from lcjax.cli.entry import entry_point
from lcjax.errors import InputError
from lcjax_scripts.bench.kernels import report, runs, sweep
from lcjax_scripts.bench.kernels.jobs import BACKWARD, BOTH, FORWARD, IMPLEMENTATIONS, Job, benchmark_jobs


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measures attention (forward, backward, both) and RoPE at every length."""

    lengths: tuple[int, ...] = (2048, 16_384)
    """Tokens per sequence. A GPU with 80 GB can hold 262144."""
    heads: int = 32
    """Query heads."""
    kv_heads: int = 8
    """Key/value heads."""
    head_dim: int = 128
    """Dimension of a head."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of q, k and v."""
    causal: bool = True
    """Whether attention is causal."""
    operations: tuple[Literal["attention", "rope"], ...] = ("attention", "rope")
    """What to measure."""
    parts: tuple[Literal["forward", "backward", "both"], ...] = (FORWARD, BACKWARD, BOTH)
    """Passes to measure."""
    implementations: tuple[str, ...] | None = None
    """Implementations to measure. Default: all that are installed."""
    sweep: bool = False
    """Try the candidate block sizes of our Pallas and Triton kernels, and print the best."""
    seconds: float = 0.6
    """Time to spend on each measurement, excluding warm-up."""
    csv: Path | None = None
    """Append every result, with the machine, versions and commit, to this file."""
    plot: Path | None = None
    """Draw a roofline plot of the results to this file."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    bench = tyro.cli(Bench, args=argv, description=__doc__)
    if unknown := set(bench.implementations or ()) - set(IMPLEMENTATIONS):
        names = ", ".join(sorted(unknown))
        raise InputError(f"--implementations {names} is unknown; use some of {', '.join(IMPLEMENTATIONS)}")
    sizes = [
        Job(
            "attention",
            FORWARD,
            "pallas",
            tokens,
            bench.heads,
            bench.kv_heads,
            bench.head_dim,
            bench.dtype,
            bench.causal,
        )
        for tokens in bench.lengths
    ]
    if bench.sweep:
        jobs = sweep.jobs(sizes, bench.implementations or sweep.IMPLEMENTATIONS)
    else:
        jobs = benchmark_jobs(sizes, bench.operations, bench.parts, bench.implementations)
    results, provenance = [], {}
    for result, provenance in runs.run(jobs, bench.seconds):
        results.append(result)
        if bench.csv is not None:  # write at once, because a long run may be interrupted
            report.append_csv(bench.csv, result, provenance)
    results.sort(key=lambda result: jobs.index(result.job))
    report.table(results)
    if bench.sweep:
        sweep.table(results)
    if bench.plot is not None:
        report.roofline(bench.plot, results, provenance)
    return 0


if __name__ == "__main__":
    sys.exit(main())
