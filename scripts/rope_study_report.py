"""The table and the picture of `rope_study.py`, from its results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


def table(results: dict[str, Any]) -> str:
    """Markdown: a row for each length and kind, a column for the trained context and for each doubling beyond it.

    A figure is the mean loss there, nats a token: before, and after training where there was any.
    """
    context, cells = results["trained_context"], results["cells"]
    spans = [(0, context), *((context << n, context << n + 1) for n in range(_doublings(results)))]
    titles = ["length", "RoPE", *(f"{start:,} to {stop:,}" for start, stop in spans)]
    rows = [titles, ["---"] * len(titles)]
    for cell in cells:
        means = [
            " → ".join(_figure(cell[time], *span) for time in ("before", "after") if time in cell) for span in spans
        ]
        rows.append([f"{cell['tokens']:,} ({cell['factor']} x)", f"{cell['kind']}: {cell['rope']}", *means])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def mean_loss(buckets: Sequence[dict[str, float]], start: int, stop: int) -> float | None:
    """Nats a token at the positions of the buckets within [start, stop); None where there are none."""
    inside = [bucket for bucket in buckets if start <= bucket["start"] and bucket["stop"] <= stop]
    tokens = sum(bucket["tokens"] for bucket in inside)
    return sum(bucket["loss"] * bucket["tokens"] for bucket in inside) / tokens if tokens else None


def draw(results: dict[str, Any], path: Path) -> None:
    """A PNG: loss over position, a panel for each length, before training thin and broken, after it solid."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = results["cells"]
    factors = sorted({cell["factor"] for cell in cells})
    kinds = list(dict.fromkeys(cell["kind"] for cell in cells))
    figure = Figure(figsize=(4.2 * len(factors) + 1.5, 4.2), layout="constrained")
    panels = figure.subplots(1, len(factors), sharey=True, squeeze=False)[0]
    for axes, factor in zip(panels, factors, strict=True):
        for cell in (cell for cell in cells if cell["factor"] == factor):
            color = f"C{kinds.index(cell['kind'])}"
            for time, style in (("before", {"linestyle": "--", "linewidth": 1}), ("after", {"linewidth": 2})):
                curve = [(bucket["stop"], bucket["loss"]) for bucket in cell.get(time, ())]
                label = f"{cell['kind']}, {time}" if axes is panels[-1] else None
                axes.plot(*zip(*curve, strict=True), color=color, label=label, **style) if curve else None
        axes.axvline(results["trained_context"], color="0.7", linewidth=1)
        axes.set(xscale="log", xlabel="position (end of bucket), tokens", title=f"{factor} x the trained context")
        axes.set_xscale("log", base=2)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out loss, nats a token")
    figure.legend(frameon=False, loc="outside right upper", fontsize="small")
    FigureCanvasAgg(figure).print_png(str(path))


def _figure(buckets: Sequence[dict[str, float]], start: int, stop: int) -> str:
    mean = mean_loss(buckets, start, stop)
    return "" if mean is None else f"{mean:.3f}"


def _doublings(results: dict[str, Any]) -> int:
    """How often the context doubles up to the longest sequence."""
    longest = max(cell["tokens"] for cell in results["cells"])
    return max(1, (longest // results["trained_context"] - 1).bit_length())
