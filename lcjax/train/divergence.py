"""Ends the run before a loss or gradient that is not finite is used."""

from __future__ import annotations

from pathlib import Path


class TrainingDiverged(RuntimeError):
    """The loss or the gradient became NaN or infinite.

    The message names the step, its documents and the last good checkpoint.
    """

    @classmethod
    def at(
        cls, step: int, what: str, documents: list[str], *, last_good: Path | None, untrained: bool
    ) -> TrainingDiverged:
        """The error of one step.

        Args:
          step: the current step, 0 before the first.
          what: the value, e.g. "the loss is nan".
          documents: the names of those in the batch.
          last_good: the newest checkpoint from which a finite step was taken.
          untrained: whether the weights are still the initial ones.
        """
        named = ", ".join(documents[:5]) + (f" and {len(documents) - 5} more" if len(documents) > 5 else "")
        remedy = "check the model's weights" if untrained else "lower --learning-rate"
        return cls(
            f"{what} at step {step}, in a batch of {named}; last good checkpoint: "
            f"{last_good or 'none'}; {remedy}, or omit that text"
        )
