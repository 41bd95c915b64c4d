"""A picture of reuse by distance."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.figure import Figure

from lcjax.audit.figures import AuditFigures
from lcjax.tokens.figures import short


def draw(figures: AuditFigures, path: Path) -> None:
    """Draws `reuse_figure` as a PNG."""
    figure = reuse_figure(figures)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def reuse_figure(figures: AuditFigures) -> Figure:
    """Repeated text compared with chance, and the number of tokens that reach that far back.

    The legend is above both plots.
    """
    names = [f"{short(bucket.start)} to\n{short(bucket.stop)}" for bucket in figures.reuse]
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6), layout="constrained")
    tokens = [bucket.tokens or 1 for bucket in figures.reuse]
    above.bar(names, [100 * b.observed / n for b, n in zip(figures.reuse, tokens, strict=True)], label="repeats")
    by_chance = [100 * b.expected / n for b, n in zip(figures.reuse, tokens, strict=True)]
    above.bar(names, by_chance, width=0.5, label="by chance")
    above.set(ylabel="% of the tokens that reach", title="text that repeats at this distance, and no nearer")
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    below.bar(names, [100 * bucket.tokens / max(1, figures.sampled_tokens) for bucket in figures.reuse])
    below.set(xlabel="distance in tokens", ylabel="% of all tokens that reach this far")
    return figure
