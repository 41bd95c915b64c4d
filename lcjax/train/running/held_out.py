"""The loss on held-out text during a run."""

from __future__ import annotations

import math
from collections.abc import Callable

from lcjax.evaluate.positions import LossByPosition, batch_loss_by_position
from lcjax.train.running.computation import Computation


class NotFinite(ArithmeticError):
    """A held-out loss that is NaN or infinite.

    Attributes:
      loss: its value.
      documents: the names of the documents in the batch.
    """

    def __init__(self, loss: float, documents: list[str]):
        super().__init__(f"the held-out loss is {loss}")
        self.documents = documents


def held_out_loss(computation: Computation, stops: Callable[[], object]) -> LossByPosition | None:
    """The loss on the held-out rows with the current weights; None if `stops` returned true.

    Args:
      computation: of the run; it is not changed.
      stops: whether to stop, asked before every batch.

    Raises:
      NotFinite: the loss is NaN or infinite.
    """
    arguments, data = computation.arguments, computation.data
    model, losses = computation.trained(), LossByPosition.none()
    for batch in data.evaluation_batches(arguments.per_device_train_batch_size, arguments.eval_batches):
        if stops():
            return None
        losses += batch_loss_by_position(model, batch, computation.token_scores, computation.devices)
        if not math.isfinite(losses.total):
            raise NotFinite(losses.total, data.documents_of(batch, held_out=True))
    return losses
