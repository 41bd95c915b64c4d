"""The checkpoint of the best step: it exists as long as the step is the best one."""

from __future__ import annotations

import dataclasses

from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError
from lcjax.parallel.processes import only_first
from lcjax.report.records import Best, best_evaluation
from lcjax.train.checkpoints.checkpoint import Checkpoints
from lcjax.train.checkpoints.resume import ResumePoint
from lcjax.train.selection.best import Rows, stops_early


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which step's weights the run ends with.

    Attributes:
      arguments: of the run.
      checkpoints: those of the run; they have the best step's.
    """

    arguments: TrainingArguments
    checkpoints: Checkpoints

    def best(self, rows: Rows) -> Best | None:
        """The best evaluation so far; None without --load-best-model-at-end."""
        if not self.arguments.load_best_model_at_end:
            return None
        return best_evaluation(rows, self.arguments.metric_for_best_model)

    def must_save(self, rows: Rows, step: int) -> bool:
        """Whether `step` is the best one and has no checkpoint yet."""
        best = self.best(rows)
        return best is not None and best.step == step and step not in self.checkpoints.steps()

    def stops_early(self, rows: Rows) -> bool:
        """Whether the patience is exhausted; the same in all processes."""
        return stops_early(rows, self.arguments)

    def why_it_stops(self, rows: Rows) -> str:
        """What the patience was exhausted by."""
        metric, patience = self.arguments.metric_for_best_model, self.arguments.early_stopping_patience
        best = best_evaluation(rows, metric)
        assert best is not None
        return f"{patience} evaluations in a row did not improve {metric}; the best was {best.value:.4f} at step {best.step}"

    def note(self, rows: Rows) -> str:
        """What the last evaluation means for the selection, to be appended to a line about it."""
        best = best_evaluation(rows, self.arguments.metric_for_best_model)
        if best is None or not self.arguments.selects_by:
            return ""
        if best.step == rows[-1]["step"]:
            return "; the best so far"
        return f"; the best was {best.value:.4f} at step {best.step}"

    def take_over(self, rows: Rows, resume: ResumePoint | None) -> None:
        """Copies the best step's checkpoint from another run's folder that this run resumes from.

        Raises:
          InputError: it does not exist, is damaged, or cannot be copied.
        """
        best = self.best(rows)
        if resume is None or best is None or best.step in self.checkpoints.steps():
            return
        source = Checkpoints(resume.directory)
        if best.step not in source.steps():
            raise InputError(
                f"--load-best-model-at-end needs the checkpoint of the best step so far, {best.step}, which is not in "
                f"{resume.directory}; resume with --no-load-best-model-at-end"
            )
        only_first(lambda: self._copy(source, best.step))

    def _copy(self, source: Checkpoints, step: int) -> None:
        if damage := source.damage(step):
            raise InputError(
                f"checkpoint {step} in {source.directory}, the best one so far, is damaged ({damage}); resume with "
                "--no-load-best-model-at-end"
            )
        self.checkpoints.copy(source.directory / str(step), step)
