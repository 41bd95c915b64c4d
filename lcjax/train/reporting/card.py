"""The figures of a run that its adapter's or model's card shows."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from lcjax.config.training import TrainingArguments
from lcjax.data import Data
from lcjax.model import Llama
from lcjax.ops.four_bits import formats_of
from lcjax.report.records import Best
from lcjax.train.start.record import shown_origin


def card_figures(
    arguments: TrainingArguments,
    model: Llama,
    data: Data,
    steps: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    best: Best | None,
    origin: Mapping[str, Any],
) -> dict[str, str]:
    """What was trained, on how much, with which settings and with which result, as text.

    Args:
      steps, evaluations: the rows of metrics.jsonl and of evaluation.jsonl.
      best: the evaluation whose weights are saved, if they are not those of the last step.
      origin: what the run started from; see `lcjax.train.start.record`.
    """
    rows_per_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    taken = [row for row in steps if best is None or row["step"] <= best.step]
    figures = {
        **({"started from": shown_origin(origin)} if origin else {}),
        "base weights": " and ".join(sorted(formats_of(model.params))) or str(model.dtype),
        "documents, tokens of data": f"{data.num_documents:,}, {len(data.corpus.tokens):,}",
        "context length": f"{model.settings.max_seq_length:,} tokens, packed documents",
        "RoPE": f"{model.config.rope_scaling.rope_type}, base {model.config.rope_theta:g}",
        "steps, rows per step": f"{len(taken):,}, {rows_per_step:,}",
        "trained tokens": f"{sum(row['tokens'] for row in taken):,}",
        "learning rate": f"{arguments.learning_rate:g}, {arguments.lr_scheduler_type}",
        "weight decay, clipping": f"{arguments.weight_decay:g}, {arguments.max_grad_norm:g}",
        "seed": f"{arguments.seed}",
    }
    if evaluations:
        after = evaluations[-1]["eval_loss"] if best is None else best.value
        figures["held-out loss before"] = f"{evaluations[0]['eval_loss']:.4f} nats per token"
        figures["held-out loss after"] = f"{after:.4f} nats per token"
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("lcjax", "jax"))
    return figures | {"trained with": ", ".join(versions)}
