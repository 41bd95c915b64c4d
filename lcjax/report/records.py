"""Reads the records in a run's folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lcjax.config.run_record import read_run_record

Rows = list[dict[str, Any]]


class Best(NamedTuple):
    """The best evaluation: after which step, and its value of the metric."""

    step: int
    value: float


def best_evaluation(rows: Sequence[dict[str, Any]], metric: str) -> Best | None:
    """The evaluation with the lowest value, and of equal ones the first; None if there is none.

    The evaluation before the first step is not counted, because nothing was trained then.
    """
    found = [Best(row["step"], row[metric]) for row in rows if row["step"]]
    return min(found, key=lambda best: best.value, default=None)


def read_rows(path: Path) -> Rows:
    """The complete lines of a file of rows, in order; [] if it does not exist."""
    return parse_rows(path.read_bytes()) if path.exists() else []


def parse_rows(content: bytes) -> Rows:
    """The rows of such a file's complete lines, up to the first invalid line."""
    rows = []
    for line in content.split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            break  # cut short by a kill; later lines belong to no finished step
        if not isinstance(row, dict) or "step" not in row:
            break
        rows.append(row)
    return rows


@dataclasses.dataclass(frozen=True)
class RunRecords:
    """The records of a run: run.yaml, and the rows of metrics.jsonl and evaluation.jsonl."""

    folder: Path
    record: dict[str, Any]
    steps: Rows
    evaluations: Rows

    @classmethod
    def read(cls, folder: Path) -> RunRecords:
        """Reads them.

        Raises:
          InputError: there is no record of a run, or it is damaged.
        """
        metrics, evaluations = (read_rows(folder / name) for name in ("metrics.jsonl", "evaluation.jsonl"))
        return cls(folder, read_run_record(folder), metrics, evaluations)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the run, by the names of the flags."""
        return self.record["arguments"]

    @property
    def best(self) -> Best | None:
        """The best evaluation so far, if the run ends with its weights."""
        if not self.arguments.get("load_best_model_at_end"):
            return None
        return best_evaluation(self.evaluations, self.arguments["metric_for_best_model"])
