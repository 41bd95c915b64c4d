"""Training: `lcjax.train(model, tokenizer, data, ...)` and `python -m lcjax.train`."""

from lcjax.train.arguments import RunArguments, TrainingArguments
from lcjax.train.loop import TrainingDiverged, TrainingResult, train

__all__ = ["RunArguments", "TrainingArguments", "TrainingDiverged", "TrainingResult", "train"]
