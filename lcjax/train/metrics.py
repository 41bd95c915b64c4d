"""What a run writes about itself: metrics.jsonl, evaluation.jsonl, TensorBoard events and loss.png."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any


class JsonLines:
    """A file of one JSON object a line, keyed by `step`; every line is on disk before the next step begins.

    A run that goes on after step n drops the lines of later steps, which it will write again, and a torn last line.
    """

    def __init__(self, path: Path, after_step: int, source: Path | None = None):
        """Keeps the lines up to `after_step` of `source` (default: of `path` itself)."""
        self.path = path
        kept = [row for row in read_rows(source or path) if row["step"] <= after_step]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of such a file, in order; [] when there is none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # torn by a kill; whatever follows is of no step that was finished
    return rows


class RunLog:
    """All the records of a run in its output directory."""

    def __init__(self, output_dir: Path, after_step: int, logging_steps: int, source: Path | None = None):
        # Imported here: a second of start-up that only training needs.
        logging.getLogger("tensorboardX").setLevel(logging.ERROR)
        from tensorboardX import SummaryWriter

        self.output_dir = output_dir
        source = source or output_dir
        self.metrics = JsonLines(output_dir / "metrics.jsonl", after_step, source / "metrics.jsonl")
        self.evaluations = JsonLines(output_dir / "evaluation.jsonl", after_step, source / "evaluation.jsonl")
        self._logging_steps = logging_steps
        self._board = SummaryWriter(str(output_dir / "tensorboard"), purge_step=after_step + 1 if after_step else None)

    def step(self, row: dict[str, Any]) -> None:
        """Records one step: step, loss, grad_norm, learning_rate, tokens, tokens_per_second."""
        self.metrics.write(row)
        if row["step"] % self._logging_steps == 0:
            self._to_board("train", row)

    def evaluation(self, row: dict[str, Any]) -> None:
        """Records one evaluation: step, eval_loss, eval_tokens."""
        self.evaluations.write(row)
        self._to_board("eval", row)

    def draw(self) -> Path:
        """Draws training and held-out loss over steps; returns the picture's path."""
        self._board.flush()
        path = self.output_dir / "loss.png"
        draw_losses(read_rows(self.metrics.path), read_rows(self.evaluations.path), path)
        return path

    def close(self) -> None:
        self.metrics.close()
        self.evaluations.close()
        self._board.close()

    def _to_board(self, group: str, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step":
                self._board.add_scalar(f"{group}/{name}", value, row["step"])


def draw_losses(steps: list[dict[str, Any]], evaluations: list[dict[str, Any]], path: Path) -> None:
    """A PNG of both losses (nats a token) over steps, replaced in one go."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([r["step"] for r in steps], [r["loss"] for r in steps], color="0.6", linewidth=1, label="training")
    axes.plot(
        [r["step"] for r in evaluations], [r["eval_loss"] for r in evaluations], "o-", color="C0", label="held out"
    )
    for row in evaluations[:1] + evaluations[1:][-1:]:
        axes.annotate(f"{row['eval_loss']:.3f}", (row["step"], row["eval_loss"]), (0, 7), textcoords="offset points")
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    temporary = path.with_name(path.name + ".tmp")
    FigureCanvasAgg(figure).print_png(str(temporary))
    os.replace(temporary, path)
