"""What a run writes about itself: metrics.jsonl, evaluation.jsonl, TensorBoard events and loss.png."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lcjax.train.disk import replacing, writing
from lcjax.train.picture import draw_losses
from lcjax.train.tensorboard import EventFile


class JsonLines:
    """A file of one JSON object a line, keyed by `step`; every line is written out before the next step begins.

    A run that goes on after step n drops the lines of later steps, which it will write again, and a torn last line.
    """

    def __init__(self, path: Path, after_step: int, source: Path | None = None):
        """Keeps the lines up to `after_step` of `source` (default: of `path` itself).

        Raises:
          InputError: the file cannot be written; `write` and `sync` raise it, too.
        """
        self.path = path
        self.rows = [row for row in read_rows(source or path) if row["step"] <= after_step]
        with writing(path):
            with replacing(path) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
            # Unbuffered, so that a line which the full disk refused is not tried again on closing.
            self._file = path.open("ab", buffering=0)

    def write(self, row: dict[str, Any]) -> None:
        line = json.dumps(row).encode() + b"\n"
        with writing(self.path):
            while line:  # an almost full disk takes a part first
                line = line[self._file.write(line) :]
        self.rows.append(row)

    def sync(self) -> None:
        """Waits until all lines would survive a loss of power."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines of such a file, in order; [] when there is none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            break  # torn by a kill; whatever follows is of no step that was finished
        if not isinstance(row, dict) or "step" not in row:
            break
        rows.append(row)
    return rows


class RunLog:
    """All the records of a run in its output directory."""

    def __init__(
        self, output_dir: Path, after_step: int, logging_steps: int, source: Path | None = None, title: str = ""
    ):
        """Keeps the records up to `after_step` that are in `source` (default: in `output_dir` itself).

        `title` says in the picture what the run is.

        Raises:
          InputError: a file cannot be written; the methods raise it, too.
        """
        source = source or output_dir
        self.output_dir = output_dir
        self.metrics = JsonLines(output_dir / "metrics.jsonl", after_step, source / "metrics.jsonl")
        self.evaluations = JsonLines(output_dir / "evaluation.jsonl", after_step, source / "evaluation.jsonl")
        self._logging_steps, self._title = logging_steps, title
        self._events = EventFile(output_dir / "tensorboard", after_step + 1 if after_step else 0)

    def step(self, row: dict[str, Any]) -> None:
        """Records one step: step, loss, grad_norm, learning_rate, tokens, tokens_per_second."""
        self.metrics.write(row)
        if row["step"] % self._logging_steps == 0:
            self._events.add("train", row)

    def evaluation(self, row: dict[str, Any]) -> None:
        """Records one evaluation: step, eval_loss, eval_tokens, eval_loss_by_position."""
        self.evaluations.write(row)
        self._events.add("eval", row)
        self._events.flush()

    def evaluated(self, step: int) -> bool:
        """Whether the evaluation after that step is recorded."""
        return any(row["step"] == step for row in self.evaluations.rows)

    def sync(self) -> None:
        """Lets everything recorded reach the disk, before a checkpoint that counts on it."""
        self.metrics.sync()
        self.evaluations.sync()
        self._events.flush()

    def draw(self) -> Path:
        """Draws training and held-out loss over steps; returns the picture's path."""
        path = self.output_dir / "loss.png"
        with writing(path):
            draw_losses(self.metrics.rows, self.evaluations.rows, path, self._title)
        return path

    def close(self) -> None:
        self.metrics.close()
        self.evaluations.close()
        self._events.close()
