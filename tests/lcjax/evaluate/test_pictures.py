"""The pictures of an evaluation."""

from __future__ import annotations

import pytest

from lcjax.evaluate.context import ContextLoss
from lcjax.evaluate.needle import TASKS, Cell
from lcjax.evaluate.pictures import buckets_figure, curves_figure, needle_figure
from lcjax.evaluate.positions import Bucket

BUCKETS = [Bucket(0, 16, 9, 3.0), Bucket(16, 32, 9, 2.0), Bucket(64, 128, 9, 1.0)]


def test_a_bucket_is_drawn_from_where_it_begins_to_where_it_stops():
    (axes,) = buckets_figure({"base": BUCKETS}).axes
    steps = [patch.get_data() for patch in axes.patches]
    assert [(list(step.edges), list(step.values)) for step in steps] == [([b.start, b.stop], [b.loss]) for b in BUCKETS]
    # There is a step between adjacent buckets, and none across positions without tokens.
    assert [list(line.get_xdata()) for line in axes.lines] == [[16, 16]]


def test_the_first_bucket_has_its_width_on_the_axis():
    figure = buckets_figure({"base": BUCKETS})
    figure.canvas.draw()
    (axes,) = figure.axes
    at = axes.transData.transform([(0, 1), (16, 1), (32, 1), (64, 1)])[:, 0]
    first, second, third = at[1:] - at[:-1]
    assert first > second > 0
    assert second == pytest.approx(third, rel=0.05)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "16", "32", "64", "128"]


def test_every_picture_has_its_title():
    title = r"tiny and its adapter on $\books; 8,192 tokens"
    context = [(loss.context, loss.loss) for loss in (ContextLoss(16, 9, 1.0, 2.7), ContextLoss(32, 9, 0.9, 2.5))]
    cells = [Cell(task, 256, 0.0, 1, 1.0, 0.5) for task in TASKS]
    for figure in (buckets_figure({"base": BUCKETS}, title), curves_figure({"base": context}, "tokens", title)):
        figure.canvas.draw()
        assert figure.axes[0].get_title(loc="left") == title
    figure = needle_figure({"base": cells}, title)
    figure.canvas.draw()
    assert figure.get_suptitle() == title
