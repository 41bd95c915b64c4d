"""A picture of document lengths."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from lcjax.tokens.figures import TokenFigures, short


def draw(figures: TokenFigures, path: Path) -> None:
    """Draws documents and their tokens by length."""
    names = [short(bucket.start) for bucket in figures.histogram]
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5), layout="constrained")
    above.bar(names, [bucket.documents for bucket in figures.histogram])
    above.set(ylabel="documents", title=f"{figures.documents:,} documents, {figures.tokens:,} tokens")
    below.bar(names, [bucket.tokens for bucket in figures.histogram])
    below.set(ylabel="tokens in them", xlabel="tokens in a document, from")
    for axes in (above, below):
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
