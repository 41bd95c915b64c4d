"""A model that compiles in seconds, and its training steps."""

from __future__ import annotations

import functools

from lcjax.config import LlamaConfig
from lcjax.plan.choosing.settings import requested_settings
from lcjax.plan.compiling.compile import CompiledStep, compile_step
from lcjax.plan.workload import Workload

TINY = LlamaConfig(
    vocab_size=1000,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)
TOKENS = 2048


@functools.cache
def compiled(policy: str, lora_r: int = 8, quantize: str | None = None) -> CompiledStep:
    """Compiles the training step of the tiny model."""
    workload = Workload("tiny", TINY, "h100-80gb", lora_r, quantize, policy)
    return compile_step(workload, requested_settings(workload, TOKENS))
