"""loss.png has a title, and shows the trend of a noisy loss."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.axes import Axes

from lcjax.config import LoraConfig
from lcjax.model import ModelSettings
from lcjax.train.reporting.picture import SMOOTHED_FROM, draw_losses, odd_window, run_title, smoothed


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws losses; returns the labels of the legend, the curves by label, and the title."""

    def draw(losses, title="") -> tuple[list[str], dict, str]:
        seen = {}
        legend = Axes.legend
        monkeypatch.setattr(Axes, "legend", lambda axes, **rest: (seen.update(axes=axes), legend(axes, **rest))[1])
        rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
        draw_losses(rows, [{"step": 0, "eval_loss": 5.0}], tmp_path / "loss.png", title)
        axes = seen["axes"]
        curves = {str(line.get_label()): line for line in axes.lines}
        return list(curves), curves, axes.get_title(loc="left")

    return draw


def test_the_title_names_model_data_rank_and_length():
    settings = ModelSettings(max_seq_length=8192, name_or_path="models/SmolLM2", lora=LoraConfig(4, 8, ("q_proj",)))
    assert run_title(settings, ["data/books", "b.jsonl"]) == "SmolLM2 on books, b.jsonl; LoRA rank 4, 8,192 tokens"
    full = dataclasses.replace(settings, lora=None)
    many = [f"{n}/{n}.txt" for n in range(9)]
    assert run_title(full, many) == "SmolLM2 on 0.txt, 1.txt, 2.txt and 6 more; every weight, 8,192 tokens"
    files = [f"lib/python/{n}.py" for n in range(2000)]
    assert run_title(full, files) == "SmolLM2 on 2,000 files of python; every weight, 8,192 tokens"


def test_a_title_is_wrapped_and_not_parsed_as_a_formula(drawn):
    title = r"a model on $\frac.txt and $x; LoRA rank 4, " + "many words " * 12
    shown = drawn([1.0, 2.0], title)[2]
    assert shown.split() == title.split()
    assert max(map(len, shown.splitlines())) <= 80


def test_many_steps_have_a_smoothed_curve_and_few_have_none(drawn):
    assert drawn([1.0] * (SMOOTHED_FROM - 1))[0] == ["training", "held out"]
    losses = np.random.default_rng(0).normal(2, 1, 400)
    labels, curves, _ = drawn(losses)
    assert labels == ["training", "training, mean of 21 steps", "held out"]
    line = curves["training, mean of 21 steps"].get_ydata()
    assert line[200] == pytest.approx(losses[190:211].mean())


def test_steps_are_whole_numbers(drawn):
    _, curves, _ = drawn([2.0, 1.5, 1.0])
    axes = curves["training"].axes
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_rows_without_a_loss_are_left_out(drawn):
    _, curves, _ = drawn([2.0, None, 1.0])
    assert list(curves["training"].get_xdata()) == [1, 3]


@pytest.mark.parametrize("window", [1, 3, 7])
def test_the_running_mean_is_over_the_existing_neighbors(window):
    values = np.random.default_rng(1).normal(size=20)
    half = window // 2
    expected = [values[max(0, i - half) : i + half + 1].mean() for i in range(20)]
    np.testing.assert_allclose(smoothed(values.tolist(), window), expected, rtol=1e-12)


def test_the_window_is_odd():
    assert [odd_window(steps) for steps in (40, 100, 1000, 100_000)] == [3, 5, 51, 5001]
