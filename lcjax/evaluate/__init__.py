"""Measures whether a model uses long context: held-out loss by position."""

from typing import TYPE_CHECKING

from lcjax.lazy import lazily

if TYPE_CHECKING:
    from lcjax.evaluate.positions import LossByPosition, loss_by_position

__all__ = ["LossByPosition", "loss_by_position"]

__getattr__ = lazily(__name__, dict.fromkeys(__all__, "lcjax.evaluate.positions"))
