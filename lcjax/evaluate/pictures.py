"""Draws results as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lcjax.evaluate.needle import TASKS, Cell
from lcjax.evaluate.positions import FIRST_STOP, Bucket
from lcjax.evaluate.results import Results
from lcjax.evaluate.titles import STYLE, wrapped

PICTURES = ("position.png", "context.png", "needle.png")
_TICKS = 10


def draw(results: Results, folder: Path, title: str = "") -> list[Path]:
    """Draws a picture of each evaluation, with `title`; returns their paths."""
    position, context, needle = PICTURES
    pictures = []
    if results.position:
        pictures.append((position, buckets_figure(results.position, title)))
    if results.context:
        curves = {m: [(loss.context, loss.loss) for loss in losses] for m, losses in results.context.items()}
        pictures.append((context, curves_figure(curves, "tokens of context given", title)))
    if results.needle:
        pictures.append((needle, needle_figure(results.needle, title)))
    for name, figure in pictures:
        FigureCanvasAgg(figure).print_png(str(folder / name))
    return [folder / name for name, _ in pictures]


def buckets_figure(found: Mapping[str, Sequence[Bucket]], title: str = "") -> Figure:
    """Loss by position, one line per model, constant over each bucket of positions.

    The axis is linear up to the end of the first bucket, and logarithmic beyond it.
    """
    figure, axes = _figure("position in the document", title)
    for number, (name, buckets) in enumerate(found.items()):
        for at, bucket in enumerate(buckets):
            label = name if at == 0 else None
            axes.stairs(
                [bucket.loss], [bucket.start, bucket.stop], baseline=None, color=f"C{number}", lw=2, label=label
            )
            if at and buckets[at - 1].stop == bucket.start:
                axes.plot([bucket.start] * 2, [buckets[at - 1].loss, bucket.loss], color=f"C{number}", lw=0.5)
    axes.set_xscale("symlog", base=2, linthresh=FIRST_STOP, linscale=1)
    edges = sorted({edge for buckets in found.values() for b in buckets for edge in (b.start, b.stop)})
    axes.set_xticks(edges[:: -(-len(edges) // _TICKS)], minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(_tokens)
    axes.legend(frameon=False)
    return figure


def curves_figure(curves: Mapping[str, Sequence[tuple[int, float]]], label: str, title: str = "") -> Figure:
    """Loss over tokens, one curve per model: [(tokens, nats), ...]."""
    figure, axes = _figure(label, title)
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), "o-", label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(_tokens)
    axes.legend(frameon=False)
    return figure


def _figure(label: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=label, ylabel="loss (nats per token)")
    axes.set_title(wrapped(title), loc="left", **STYLE)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _tokens(value: float, _: float) -> str:
    return f"{value:,.0f}"


def needle_figure(found: dict[str, list[Cell]], title: str = "") -> Figure:
    """Heat maps of the share retrieved, depth over length; a row per task, a column per model."""
    figure = Figure(figsize=(1.5 + 4.5 * len(found), 1 + 3 * len(TASKS)), layout="constrained")
    figure.suptitle(wrapped(title), **STYLE)
    grid = figure.subplots(len(TASKS), len(found), squeeze=False)
    image = None
    for column, (model, cells) in enumerate(found.items()):
        for row, task in enumerate(TASKS):
            axes = grid[row][column]
            own = {(cell.depth, cell.length): cell.retrieved for cell in cells if cell.task == task}
            depths, lengths = sorted({cell.depth for cell in cells}), sorted({cell.length for cell in cells})
            shares = [[own[depth, length] for length in lengths] for depth in depths]
            image = axes.imshow(shares, vmin=0, vmax=1, cmap="RdYlGn", alpha=0.7, aspect="auto")
            axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
            axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
            axes.set(title=f"{task}, {model}", xlabel="tokens", ylabel="depth")
            for y, line in enumerate(shares):
                for x, share in enumerate(line):
                    axes.text(x, y, f"{share:.0%}", ha="center", va="center")
    assert image is not None
    figure.colorbar(image, ax=grid, label="retrieved")
    return figure
