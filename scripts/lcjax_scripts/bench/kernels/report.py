"""Writes results as a table, as rows of a CSV file, and as a picture."""

from __future__ import annotations

import csv
import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from lcjax.cli.terminal import tables_console
from lcjax_scripts.bench.kernels.jobs import Result

# Peak dense bf16 TFLOP/s and TB/s, from NVIDIA's data sheets.
CEILINGS = {"H100 80GB HBM3": (989.0, 3.35), "H200": (989.0, 4.8), "A100": (312.0, 2.04), "B200": (2250.0, 8.0)}

# The plot's marker for each part of an operation.
MARKERS = {
    "forward": "^",
    "backward": "v",
    "both": "D",
    "attention_forward": "^",
    "attention_dq": "v",
    "attention_dkv": "s",
}


def table(results: Sequence[Result]) -> None:
    """Prints a row for each result, and below the table the jobs that failed and why.

    The last column is the speed relative to the fastest Triton result for the same work.
    """
    triton: dict[tuple, float] = {}
    for result in results:
        if result.job.implementation == "triton" and result.milliseconds:
            work = _work(result)
            triton[work] = min(result.milliseconds, triton.get(work, result.milliseconds))
    shown = Table(
        "operation", "part", "tokens", "implementation", "tile", "ms", "TFLOP/s", "TB/s", "extra MiB", "x Triton"
    )
    for result in results:
        if not result.milliseconds:
            continue
        job, peer = result.job, triton.get(_work(result))
        size = "" if result.extra_bytes is None else f"{result.extra_bytes / 2**20:,.0f}"
        ratio = f"{peer / result.milliseconds:.2f}" if peer else ""
        shown.add_row(
            *(job.operation, job.part, f"{job.tokens:,}", job.implementation, str(job.tile or "")),
            f"{result.milliseconds:.3f}",
            f"{result.tflops:.0f}" if job.operation == "attention" and result.tflops else "",
            f"{result.terabytes_a_second:.2f}" if job.operation == "rope" else "",
            size,
            ratio,
        )
    console = tables_console(None)
    console.print(shown)
    for (implementation, error), works in _not_measured(results).items():
        console.print(f"{implementation} did not run {', '.join(works)}: {escape(error)}", style="dim", highlight=False)


def _not_measured(results: Sequence[Result]) -> dict[tuple[str, str], list[str]]:
    """Groups failed jobs, such as "attention forward 2,048", by implementation and error."""
    works = defaultdict(list)
    for result in results:
        if not result.milliseconds:
            job = result.job
            works[job.implementation, str(result.error)].append(f"{job.operation} {job.part} {job.tokens:,}")
    return dict(works)


def _work(result: Result) -> tuple:
    return dataclasses.astuple(dataclasses.replace(result.job, implementation="", tile=None))


def append_csv(path: Path, result: Result, provenance: dict[str, str]) -> None:
    """Appends a row with its provenance; writes the header of a new file."""
    row = (
        dataclasses.asdict(result.job)
        | {"tile": "x".join(map(str, result.job.tile or ()))}
        | {
            name: getattr(result, name)
            for name in ("milliseconds", "tflops", "terabytes_a_second", "extra_bytes", "error")
        }
        | {name: provenance.get(name, "") for name in ("device", "jax", "torch", "triton", "commit", "date")}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def roofline(path: Path, results: Sequence[Result], provenance: dict[str, str]) -> None:
    """Plots speed against arithmetic intensity in operations per byte moved.

    The GPU's compute and bandwidth ceilings are drawn if they are known.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    points = defaultdict(list)
    for result in results:
        if result.tflops:
            intensity = result.job.flops / result.job.bytes_moved
            points[result.job.implementation, result.job.part].append((intensity, result.tflops))
    colors = {name: f"C{n}" for n, name in enumerate(dict.fromkeys(name for name, _ in points))}
    for (implementation, part), xy in points.items():
        axes.scatter(
            *zip(*xy, strict=True), color=colors[implementation], marker=MARKERS.get(part, "o"), s=36, alpha=0.8
        )
    found = [x for xy in points.values() for x, _ in xy]
    device = provenance.get("device", "")
    for name, (tflops, terabytes) in CEILINGS.items():
        if name in device and found:
            ridge = tflops / terabytes
            intensities = sorted((min(*found, ridge) / 2, ridge, max(*found, ridge) * 2))
            axes.plot(intensities, [min(tflops, terabytes * x) for x in intensities], color="0.4")
            axes.annotate(
                f"{tflops:.0f} TFLOP/s, {terabytes} TB/s", (ridge, tflops), (0, 6), textcoords="offset points"
            )
    axes.set(xscale="log", yscale="log", xlabel="floating-point operations per byte", ylabel="TFLOP/s")
    axes.set_title(f"attention and RoPE on {device or 'an unknown device'}, commit {provenance['commit']}")
    parts = dict.fromkeys(part for _, part in points)
    axes.legend(
        handles=[Line2D([], [], color=color, marker="o", ls="", label=name) for name, color in colors.items()]
        + [Line2D([], [], color="0.4", marker=MARKERS.get(part, "o"), ls="", label=part) for part in parts],
        fontsize=8,
    )
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
