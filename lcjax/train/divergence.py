"""A loss or gradient that is no finite number ends the run, before anything is made from it."""

from __future__ import annotations

from pathlib import Path


class TrainingDiverged(RuntimeError):
    """The loss or the gradient became NaN or infinite; the message names the step, its documents and the last good checkpoint."""

    @classmethod
    def at(
        cls, step: int, what: str, documents: list[str], *, last_good: Path | None, untrained: bool
    ) -> TrainingDiverged:
        """The error of one step.

        Args:
          step: the step at hand, 0 before the first.
          what: the value, e.g. "the loss is nan".
          documents: the names of those in the batch.
          last_good: the newest checkpoint from which a step was taken that was finite.
          untrained: whether the weights are still those that the run began with.
        """
        shown = ", ".join(documents[:5]) + (f" and {len(documents) - 5} more" if len(documents) > 5 else "")
        mend = "check the model's weights" if untrained else "lower --learning-rate"
        return cls(
            f"{what} at step {step}, in a batch of {shown}; last good checkpoint: {last_good or 'none'}; "
            f"{mend}, or leave that text out"
        )
