"""Describes in one line what a run is about to do."""

from __future__ import annotations

import math

import jax

from lcjax.config.training import TrainingArguments
from lcjax.data import Data
from lcjax.model import Llama, ModelSettings
from lcjax.ops.attention.registry import backend_of
from lcjax.ops.four_bits import formats_of
from lcjax.plan.compiling.parameters import abstract_params
from lcjax.step import why_attention


def start_line(
    model: Llama, settings: ModelSettings, data: Data, arguments: TrainingArguments, trainable: int, max_steps: int
) -> str:
    """Model, precision, rows, steps, epochs, rank, learning rate, and how the step runs.

    Args:
      settings: the settings with which the step is compiled.
      trainable: the number of trainable parameters.
    """
    rows, length = len(data.train_plan), settings.max_seq_length
    rows_per_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    learns = "every weight" if settings.lora is None else f"LoRA r={settings.lora.r}"
    learns += f" from {settings.adapter}" if settings.adapter else ""
    # MXFP4 is a format of experts alone (lcjax.weights.experts).
    parts = {"nf4": "layers in nf4", "mxfp4": "experts in mxfp4"}
    formats = formats_of(model.params)
    quantized = ", ".join(text for name, text in parts.items() if name in formats) or "not quantized"
    return "; ".join(
        [
            f"start: {settings.name_or_path or 'the model'}, {_parameters(model):,} parameters ({model.dtype}, {quantized})",
            f"{learns}, {trainable:,} trainable parameters",
            f"{rows:,} rows of {length:,}, {rows_per_step * length:,} tokens per step",
            f"{max_steps:,} steps, {max_steps * rows_per_step / max(rows, 1):.3g} epochs",
            f"learning rate {arguments.learning_rate:g} ({arguments.lr_scheduler_type})",
            f"gradient checkpointing {settings.form.policy}",
            f"attention {_attention(model, settings)}",
            *_devices(settings),
        ]
    )


def _attention(model: Llama, settings: ModelSettings) -> str:
    """The implementation, the reason, and what it means for an exact resume (docs/resume.md)."""
    backend = backend_of(settings.execution.attention)
    differs = ", whose sums differ from run to run in the last bits" if backend.order_of_sums == "any" else ""
    reason = why_attention(settings, model.config, model.dtype)
    return f"{backend.name}{reason and f' ({reason})'}{differs}"


def _devices(settings: ModelSettings) -> list[str]:
    """How several devices share the work, and the tokens that each has of a sequence."""
    mesh = settings.execution.mesh
    if mesh.size == 1:
        return []
    local = mesh.local_tokens(settings.max_seq_length)
    weights = f"weights cut over {mesh.shards}" if mesh.shard_axes else "all weights on each"
    others = jax.device_count() - mesh.size
    number = f"{mesh.size} devices" if not others else f"{mesh.size} of {jax.device_count()} devices"
    return [f"{number}: {mesh.describe()}, {local:,} tokens of a row each, {weights}"]


def _parameters(model: Llama) -> int:
    """The number of the base model's parameters, regardless of how they are stored."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(model.config, None, None)))
