"""The picture of a run: both losses over its steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lcjax.cli.outputs import written_atomically
from lcjax.evaluate.titles import STYLE, subject, wrapped
from lcjax.model import ModelSettings

# From this many steps on, the training loss is also drawn as a running mean over this fraction of
# the steps.
SMOOTHED_FROM = 40
_WINDOW_SHARE = 0.05


def run_title(settings: ModelSettings, data: Sequence[str | Path]) -> str:
    """Model, data, adapter rank and sequence length of a run."""
    trained = f"LoRA rank {settings.lora.r}" if settings.lora else "every weight"
    return subject(settings.name_or_path, data, trained, f"{settings.max_seq_length:,} tokens")


def draw_losses(
    steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]], path: Path, title: str = ""
) -> None:
    """Draws a PNG of both losses (nats per token) over steps; replaces the file atomically.

    Args:
      steps: rows of metrics.jsonl; those without a loss are skipped.
      evaluations: rows of evaluation.jsonl.
      path: of the picture.
      title: a description of the run, see `lcjax.evaluate.titles.subject`.

    Raises:
      OSError: the picture cannot be written; a former one still exists.
    """
    # Imported here so that the first step does not wait for them.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = [row for row in steps if row["loss"] is not None]
    at, losses = [row["step"] for row in steps], [row["loss"] for row in steps]
    many = len(steps) >= SMOOTHED_FROM
    axes.plot(at, losses, color="0.8" if many else "0.6", linewidth=1, label="training")
    if many:
        window = odd_window(len(steps))
        axes.plot(at, smoothed(losses, window), color="0.35", label=f"training, mean of {window} steps")
    axes.plot(
        [r["step"] for r in evaluations], [r["eval_loss"] for r in evaluations], "o-", color="C0", label="held out"
    )
    for row in [*evaluations[:1], *evaluations[1:][-1:]]:
        axes.annotate(f"{row['eval_loss']:.3f}", (row["step"], row["eval_loss"]), (0, 7), textcoords="offset points")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(wrapped(title), loc="left", **STYLE)
    with written_atomically(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def odd_window(steps: int) -> int:
    """Window of the running mean over this many steps; an odd number, so that it has a middle."""
    return int(_WINDOW_SHARE * steps) // 2 * 2 + 1


def smoothed(values: Sequence[float], window: int) -> np.ndarray:
    """The mean over a window of `window` values centered at each value, float64 [N].

    At the ends, the mean is over the values that exist.
    """
    ones = np.ones(window)
    counts = np.convolve(np.ones(len(values)), ones, mode="same")
    return np.convolve(np.asarray(values, np.float64), ones, mode="same") / counts
