"""Speed and memory of the attention and RoPE kernels beside every implementation that is there.

    python scripts/bench_kernels.py --lengths 2048 16384 --csv kernels.csv --plot roofline.png
    python scripts/bench_kernels.py --sweep --lengths 16384       # the tiles of lcjax/pallas/triton/tiles.py

JAX and torch run in processes of their own, on the same shapes, timed by the same code; what is compared runs one after the other.
Prints milliseconds, TFLOP/s by the usual count (causal attention: half the products; backward 2.5 times the forward), bytes beside
the inputs at the peak, and each speed as a ratio to that of the best Triton. RoPE is measured forward: backward is the same kernel.
Without a GPU it measures what runs on the CPU, which says nothing about kernels.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import tyro

from lcjax_scripts.bench.kernels import report, runs, sweep
from lcjax_scripts.bench.kernels.jobs import BACKWARD, BOTH, FORWARD, JAX_IMPLEMENTATIONS, TORCH_IMPLEMENTATIONS, Job

DEFAULT = ("pallas", "triton", "sdpa_fa2", "sdpa_cudnn", "cudnn", "fa3", "mosaic_example", "pallas_example", "xla")
ROPE = ("pallas", "xla", "triton", "liger")


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measures attention (forward, backward, both) and RoPE at every length."""

    lengths: tuple[int, ...] = (2048, 16_384)
    """Tokens a sequence; a GPU of 80 GB takes 262144."""
    heads: int = 32
    """Query heads."""
    kv_heads: int = 8
    """Key/value heads."""
    head_dim: int = 128
    """Width of a head."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of q, k and v."""
    causal: bool = True
    """Whether attention is causal."""
    operations: tuple[Literal["attention", "rope"], ...] = ("attention", "rope")
    """What to measure."""
    parts: tuple[Literal["forward", "backward", "both"], ...] = (FORWARD, BACKWARD, BOTH)
    """Which passes."""
    implementations: tuple[str, ...] | None = None
    """Which implementations; every one that is there when not given."""
    sweep: bool = False
    """Try the candidate tiles of our kernels, in Pallas and in Triton, and print the best."""
    seconds: float = 0.6
    """Time to spend on each measurement, warm-up not counted."""
    csv: Path | None = None
    """Append every figure, with the machine, versions and commit, to this file."""
    plot: Path | None = None
    """Draw a roofline of the figures."""


def main(argv: list[str] | None = None) -> int:
    bench = tyro.cli(Bench, args=argv, description=__doc__)
    known = (*JAX_IMPLEMENTATIONS, *TORCH_IMPLEMENTATIONS)
    if unknown := set(bench.implementations or ()) - set(known):
        print(
            f"implementations: {', '.join(sorted(unknown))} is unknown; use some of {', '.join(known)}", file=sys.stderr
        )
        return 2
    jobs = _sweep_jobs(bench) if bench.sweep else _jobs(bench)
    results, provenance = [], {}
    for result, provenance in runs.run(jobs, bench.seconds):
        results.append(result)
        if bench.csv is not None:  # at once: a long run may not reach its end
            report.append_csv(bench.csv, result, provenance)
    results.sort(key=lambda result: jobs.index(result.job))
    report.table(results)
    if bench.sweep:
        sweep.table(results)
    if bench.plot is not None:
        report.roofline(bench.plot, results, provenance)
    return 0


def _jobs(bench: Bench) -> list[Job]:
    return [
        _job(bench, operation, part, implementation, length)
        for length in bench.lengths
        for operation in bench.operations
        for part in (bench.parts if operation == "attention" else (FORWARD,))
        for implementation in (DEFAULT if operation == "attention" else ROPE)
        if bench.implementations is None or implementation in bench.implementations
    ]


def _sweep_jobs(bench: Bench) -> list[Job]:
    sizes = [_job(bench, "attention", FORWARD, "pallas", length) for length in bench.lengths]
    return sweep.jobs(sizes, bench.implementations or sweep.IMPLEMENTATIONS)


def _job(bench: Bench, operation: str, part: str, implementation: str, tokens: int) -> Job:
    sizes = tokens, bench.heads, bench.kv_heads, bench.head_dim
    return Job(operation, part, implementation, *sizes, bench.dtype, bench.causal)


if __name__ == "__main__":
    sys.exit(main())
