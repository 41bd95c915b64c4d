"""Plots memory against context length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from lcjax.plan.choosing.search import LENGTH_STEP
from lcjax.plan.compiling.memory import GIB
from lcjax.plan.planner import Plan

_POINTS = 5


def lengths(last: int, step: int = LENGTH_STEP) -> list[int]:
    """A few multiples of `step` up to `last` tokens at which to compute memory."""
    multiples = (last * i // _POINTS // step for i in range(1, _POINTS))
    return sorted({max(1, n) * step for n in multiples if n * step < last} | {last})


def draw(plans: Sequence[Plan], path: Path) -> None:
    """Plots the device memory of `plans` as stacked areas over their lengths.

    A line shows the GPU's limit, and a dashed line the pinned host memory.
    """
    tokens = [plan.max_seq_length for plan in plans]
    memories = [plan.memory for plan in plans]
    parts = {
        "frozen weights": [memory.weights_bytes for memory in memories],
        "trained weights, optimizer": [memory.state_bytes for memory in memories],
        "batch": [memory.argument_bytes - memory.weights_bytes - memory.state_bytes for memory in memories],
        "activations and other temporaries": [memory.temp_bytes + memory.output_bytes for memory in memories],
    }
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    heights = [[size / GIB for size in sizes] for sizes in parts.values()]
    axes.stackplot(tokens, *heights, labels=list(parts), alpha=0.85)
    workload = plans[-1].workload
    axes.axhline(plans[-1].budget.device / GIB, color="red", label=f"limit of {workload.gpu}")
    if any(memory.host_bytes for memory in memories):
        axes.plot(tokens, [memory.host_bytes / GIB for memory in memories], "k--", label="pinned host memory")
    axes.set(xlabel="tokens", ylabel="GiB", ylim=(0, None))
    # A path may contain a dollar sign.
    axes.set_title(f"{workload.model} on {workload.gpu}", parse_math=False)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
