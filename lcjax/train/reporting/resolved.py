"""The settings of a run after every open choice is made, for its record."""

from __future__ import annotations

from typing import Any

import jax

from lcjax.config.training import TrainingArguments
from lcjax.model import Llama
from lcjax.ops.cross_entropy.linear import chunk_tokens
from lcjax.ops.four_bits import formats_of
from lcjax.optim.schedules import warmup_length
from lcjax.step.program import Tree, optimizer_is_on_host


def resolved_arguments(arguments: TrainingArguments, model: Llama, trainable: Tree, max_steps: int) -> dict[str, Any]:
    """The values that follow from the flags, by the names of the flags.

    Args:
      model: the model, with the settings that the step is compiled with.
      trainable: the parameters that are trained.
    """
    settings, config = model.settings, model.config
    execution, adapter, form = settings.execution, settings.lora, settings.form
    mesh = execution.mesh
    warmup = warmup_length(arguments.lr_scheduler_type, max_steps, arguments.warmup_steps, arguments.warmup_ratio)
    return {
        "max_steps": max_steps,
        "warmup_steps": warmup,
        "dtype": str(model.dtype),
        "quantize": sorted(formats_of(model.params)),
        "full_finetuning": adapter is None,
        "trainable_parameters": sum(leaf.size for leaf in jax.tree.leaves(trainable)),
        "target_modules": [] if adapter is None else adapter.target_modules,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling.rope_type,
        "attention": execution.attention,
        "use_gradient_checkpointing": form.policy,
        "memory": "none" if form.memory is None else str(form.memory),
        "loss_chunk": execution.loss_chunk or chunk_tokens(config.vocab_size),
        "optimizer_memory": "host" if optimizer_is_on_host(arguments, trainable) else "device",
        "context_parallel_size": mesh.context,
        "data_parallel_size": mesh.data,
        "ulysses_degree": mesh.heads,
        "ring_degree": mesh.ring,
        "shard_weights": "layers" if mesh.shard_axes else "none",
    }
