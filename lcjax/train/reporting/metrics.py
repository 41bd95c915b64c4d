"""Records of a run: metrics.jsonl, evaluation.jsonl, TensorBoard events and loss.png."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcjax.cli.outputs import written_atomically
from lcjax.report.records import parse_rows
from lcjax.train.disk import writing
from lcjax.train.reporting.picture import draw_losses
from lcjax.train.reporting.trackers import open_trackers

RECORDS = ("metrics.jsonl", "evaluation.jsonl")
"""The files that a checkpoint has copies of."""


class JsonLines:
    """A file with one JSON object per line, keyed by `step`.

    Every line is written before the next step begins.
    """

    def __init__(self, path: Path, content: bytes = b""):
        """Sets the file to `content`, complete lines that a resumed run has recorded so far.

        Raises:
          InputError: the file cannot be written; `write` and `sync` raise it, too.
        """
        self.path = path
        self.rows = parse_rows(content)
        with writing(path):
            with written_atomically(path) as temporary:
                temporary.write_bytes(content)
            # Unbuffered, so that a line rejected by a full disk is not written again on closing.
            self._file = path.open("ab", buffering=0)

    def write(self, row: dict[str, Any]) -> None:
        line = json.dumps(row).encode() + b"\n"
        with writing(self.path):
            while line:  # an almost full disk accepts only part of it
                line = line[self._file.write(line) :]
        self.rows.append(row)

    def sync(self) -> None:
        """Waits until all lines would survive a power failure."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def damage_of_record(path: Path, content: bytes) -> str | None:
    """How the file differs from its known content, in words, or None.

    Rows after the known content are not damage.
    """
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return "was missing" if content else None
    except OSError as error:
        return f"could not be read ({error.strerror})"
    if found.startswith(content):
        return None
    return "was cut short" if content.startswith(found) else "was changed"


class RunLog:
    """All records of a run in its output directory."""

    def __init__(
        self,
        output_dir: Path,
        after_step: int,
        logging_steps: int,
        records: Mapping[str, bytes] | None = None,
        title: str = "",
        report_to: tuple[str, ...] = ("tensorboard",),
    ):
        """Opens all files, to continue after a step; `title` describes the run in the picture.

        Args:
          output_dir: of the run.
          after_step: the number of steps taken.
          logging_steps: steps between TensorBoard's points.
          report_to: names of trackers, see `lcjax.train.reporting.trackers`.
          records: the contents of the files of `RECORDS` up to that step; by default empty.

        Raises:
          InputError: a file cannot be written; the methods raise it, too.
        """
        self.output_dir = output_dir
        contents = records or {}
        self.metrics, self.evaluations = (JsonLines(output_dir / name, contents.get(name, b"")) for name in RECORDS)
        self._logging_steps, self._title = logging_steps, title
        self._drawn: tuple[int, int] | None = None
        self._trackers = open_trackers(report_to, output_dir, after_step + 1 if after_step else 0)

    @property
    def files(self) -> list[Path]:
        """The files of `RECORDS`."""
        return [self.metrics.path, self.evaluations.path]

    def step(self, row: dict[str, Any]) -> None:
        """Records one step, a row of `lcjax.train.reporting.measuring.Meter`."""
        self.metrics.write(row)
        if row["step"] % self._logging_steps == 0:
            for tracker in self._trackers:
                tracker.add("train", row)

    def evaluation(self, row: dict[str, Any]) -> None:
        """Records one evaluation: step, eval_loss, eval_tokens, eval_loss_by_position."""
        self.evaluations.write(row)
        for tracker in self._trackers:
            tracker.add("eval", row)
            tracker.flush()

    def evaluated(self, step: int) -> bool:
        """Whether the evaluation after that step is recorded."""
        return any(row["step"] == step for row in self.evaluations.rows)

    def sync(self) -> None:
        """Flushes everything recorded to the disk, before a checkpoint that relies on it."""
        self.metrics.sync()
        self.evaluations.sync()
        for tracker in self._trackers:
            tracker.flush()

    def draw(self) -> Path:
        """Draws training and held-out loss over steps; returns the picture's path.

        The last step's checkpoint and the end of the run have the same picture, drawn once.
        """
        path = self.output_dir / "loss.png"
        rows = self.metrics.rows, self.evaluations.rows
        shown = len(rows[0]), len(rows[1])
        if shown != self._drawn or not path.exists():
            with writing(path):
                draw_losses(*rows, path, self._title)
            self._drawn = shown
        return path

    def close(self) -> None:
        self.metrics.close()
        self.evaluations.close()
        for tracker in self._trackers:
            tracker.close()
