"""Makes the table and the picture of `rope_study.py` from its results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


def table(results: dict[str, Any]) -> str:
    """Returns a Markdown table with a row for each length and kind.

    There is a column for the trained context and one for each doubling beyond it. A cell has the
    mean loss in nats per token: before training and, if there was any, after it.
    """
    context, cells = results["trained_context"], results["cells"]
    spans = [(0, context), *((context << n, context << n + 1) for n in range(_doublings(results)))]
    titles = ["length", "RoPE", *(f"{start:,} to {stop:,}" for start, stop in spans)]
    rows = [titles, ["---"] * len(titles)]
    for cell in cells:
        times = [cell[time] for time in ("before", "after") if time in cell]
        means = [" → ".join(filter(None, (_figure(buckets, *span) for buckets in times))) for span in spans]
        rows.append([f"{cell['tokens']:,} ({cell['factor']} x)", f"{cell['kind']}: {cell['rope']}", *means])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def mean_loss(buckets: Sequence[dict[str, float]], start: int, stop: int) -> float | None:
    """Returns the mean loss in nats per token of the buckets within [start, stop), or None."""
    inside = [bucket for bucket in buckets if start <= bucket["start"] and bucket["stop"] <= stop]
    tokens = sum(bucket["tokens"] for bucket in inside)
    return sum(bucket["loss"] * bucket["tokens"] for bucket in inside) / tokens if tokens else None


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws a PNG of the loss minus the best loss at each position, with a panel for each length.

    All kinds read the same text, so the difference does not depend on how hard the text is. Thin
    dashed lines are before training, and thick solid lines are after it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = results["cells"]
    factors = sorted({cell["factor"] for cell in cells})
    kinds = list(dict.fromkeys(cell["kind"] for cell in cells))
    figure = Figure(figsize=(4.2 * len(factors) + 1.5, 4.2), layout="constrained")
    panels = figure.subplots(1, len(factors), sharey=True, squeeze=False)[0]
    for axes, factor in zip(panels, factors, strict=True):
        shown = [cell for cell in cells if cell["factor"] == factor]
        best = _best([cell[time] for cell in shown for time in ("before", "after") if time in cell])
        for cell in shown:
            color = f"C{kinds.index(cell['kind'])}"
            for time, style in (("before", {"linestyle": "--", "linewidth": 1}), ("after", {"linewidth": 2})):
                if time not in cell:
                    continue
                curve = [(b["stop"], b["loss"] - best[b["stop"]]) for b in cell[time] if b["stop"] in best]
                label = f"{cell['kind']}, {time}" if axes is panels[-1] else None
                axes.plot(*zip(*curve, strict=True), marker=".", color=color, label=label, **style)
        axes.axvline(results["trained_context"], color="0.7", linewidth=1)
        axes.set(xlabel="position (end of bucket), tokens", title=f"{factor} x the trained context")
        axes.set_xscale("log", base=2)
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_ylim(bottom=-0.01)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("held-out loss above the best there, nats per token")
    figure.legend(frameon=False, loc="outside right upper", fontsize="small")
    FigureCanvasAgg(figure).print_png(str(path))


def _best(curves: Sequence[Sequence[dict[str, float]]]) -> dict[float, float]:
    """Returns the lowest loss of any curve in each of the last eight buckets, by the bucket's end.

    Earlier buckets have few tokens.
    """
    losses: dict[float, list[float]] = {}
    for bucket in (bucket for curve in curves for bucket in curve):
        losses.setdefault(bucket["stop"], []).append(bucket["loss"])
    return {stop: min(losses[stop]) for stop in sorted(losses)[-8:]}


def _figure(buckets: Sequence[dict[str, float]], start: int, stop: int) -> str:
    mean = mean_loss(buckets, start, stop)
    return "" if mean is None else f"{mean:.3f}"


def _doublings(results: dict[str, Any]) -> int:
    """Returns how often the context doubles up to the longest sequence."""
    longest = max(cell["tokens"] for cell in results["cells"])
    return max(1, (longest // results["trained_context"] - 1).bit_length())
