"""The picture of an audit."""

from __future__ import annotations

from matplotlib import pyplot

from lcjax.audit.figures import audit
from lcjax.audit.plot import reuse_figure
from tests.support.corpora import planted


def test_the_legend_covers_no_bar():
    figure = reuse_figure(audit(planted(12, length=8192, distance=1100), 8192, 10**9))
    figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert all(axes.get_legend() is None for axes in figure.axes)
    bars = [bar for axes in figure.axes for bar in axes.patches]
    assert len(bars) == 9
    assert not any(box.overlaps(bar.get_window_extent()) for bar in bars)
    pyplot.close(figure)
