"""Training: `lcjax.train(model, tokenizer, data, ...)` and `python -m lcjax.train`."""

from lcjax.train.arguments import RunArguments, TrainingArguments
from lcjax.train.divergence import TrainingDiverged
from lcjax.train.loop import TrainingResult, train

__all__ = ["RunArguments", "TrainingArguments", "TrainingDiverged", "TrainingResult", "train"]
