"""Results as PNGs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lcjax.evaluate.needle import TASKS, Cell
from lcjax.evaluate.results import Results


def draw(results: Results, folder: Path) -> list[Path]:
    """A picture of each evaluation that there is; returns their paths."""
    pictures = []
    if results.position:
        curves = {m: [(b.start or 1, b.loss) for b in buckets] for m, buckets in results.position.items()}
        pictures.append(("position.png", curves_figure(curves, "position in the document (start of its bucket)")))
    if results.context:
        curves = {m: [(loss.context, loss.loss) for loss in losses] for m, losses in results.context.items()}
        pictures.append(("context.png", curves_figure(curves, "tokens of context given")))
    if results.needle:
        pictures.append(("needle.png", needle_figure(results.needle)))
    for name, figure in pictures:
        FigureCanvasAgg(figure).print_png(str(folder / name))
    return [folder / name for name, _ in pictures]


def curves_figure(curves: Mapping[str, Sequence[tuple[int, float]]], label: str) -> Figure:
    """Loss over tokens, a curve a model: [(tokens, nats), ...]."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), "o-", label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set(xlabel=label, ylabel="loss (nats a token)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def needle_figure(found: dict[str, list[Cell]]) -> Figure:
    """Heat maps of the share retrieved: a row a task, a column a model; depth over length."""
    figure = Figure(figsize=(1.5 + 4.5 * len(found), 1 + 3 * len(TASKS)), layout="constrained")
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
