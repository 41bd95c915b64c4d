"""Whether a model uses long context: held-out loss by position."""

from lcjax.evaluate.positions import LossByPosition, loss_by_position

__all__ = ["LossByPosition", "loss_by_position"]
