"""Sets how much of the machine's memory JAX's devices may use, before JAX starts them."""

from __future__ import annotations

import jax.numpy as jnp

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.memory.allocators import pinnable_bytes, raise_limits
from lcjax.plan.fit import pinned_at_most
from lcjax.step import resolved_settings
from lcjax.train.arguments import RunArguments


def prepare_devices(config: LlamaConfig, arguments: RunArguments) -> None:
    """Allows JAX the host memory that the run needs, and nearly all of the GPU's memory."""
    raise_limits(host_bytes_at_most(config, arguments, pinnable_bytes()))


def host_bytes_at_most(config: LlamaConfig, arguments: RunArguments, limit: int) -> int:
    """Bytes of host memory that a run pins at most, over all settings that pin up to `limit` bytes.

    Does not start JAX's devices.
    """
    adapter = LoraConfig(arguments.lora_r, arguments.lora_alpha, arguments.target_modules)
    settings = resolved_settings(
        arguments.execution_request,
        config,
        jnp.bfloat16,
        arguments.max_seq_length,
        "gpu",  # asking JAX for the platform would start the GPU
        lora=None if arguments.full_finetuning else adapter,
    )
    return pinned_at_most(config, settings, arguments, limit)
