"""Whether the patience of a run is exhausted.

This and the best evaluation are functions of the rows of evaluation.jsonl. A checkpoint has a copy
of that file, so a resumed run knows them exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lcjax.config.training import TrainingArguments
from lcjax.data import Data
from lcjax.errors import InputError

Rows = Sequence[dict[str, Any]]


def evaluations_without_improvement(rows: Rows, metric: str, threshold: float = 0.0) -> int:
    """How many of the last evaluations did not improve on the best one before them.

    An improvement lowers the metric by more than `threshold`. The evaluation before the first step
    is not counted.
    """
    best, count = float("inf"), 0
    for row in rows:
        if row["step"]:
            count = 0 if best - row[metric] > threshold else count + 1
            best = min(best, row[metric])
    return count


def stops_early(rows: Rows, arguments: TrainingArguments) -> bool:
    """Whether the evaluations so far exhaust the patience of the run."""
    patience, metric = arguments.early_stopping_patience, arguments.metric_for_best_model
    return (
        patience > 0 and evaluations_without_improvement(rows, metric, arguments.early_stopping_threshold) >= patience
    )


def require_held_out(data: Data, arguments: TrainingArguments) -> None:
    """Raises InputError if the run needs held-out text to select a step, and there is none."""
    if (name := arguments.selects_by) and not len(data.held_out_plan):
        raise InputError(
            f"{name} needs held-out text, and the data is too little to hold any out; add data, "
            f"raise --eval-fraction {arguments.eval_fraction:g}, or omit it"
        )
