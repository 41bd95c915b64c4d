"""The settings of a model from the words that a user gives."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from lcjax.config import ExecutionRequest, LlamaConfig, MemorySettings, parse_memory
from lcjax.model import ModelSettings
from lcjax.step import resolved_settings
from tests.support.tiny_model import TINY


def model_settings(
    max_seq_length: int,
    config: LlamaConfig = TINY,
    *,
    attention: str = "auto",
    use_gradient_checkpointing: str = "auto",
    memory: MemorySettings | str = "auto",
    loss_chunk: int | None = None,
    **others: Any,
) -> ModelSettings:
    """The resolved settings; `others` are further arguments of `lcjax.step.resolved_settings`."""
    memory = parse_memory(memory) if isinstance(memory, str) else memory
    requested = ExecutionRequest(attention, use_gradient_checkpointing, memory, loss_chunk)
    return resolved_settings(requested, config, jnp.float32, max_seq_length, **others)
