"""Sets how much of the machine's memory JAX's devices may use, before JAX starts them."""

from __future__ import annotations

from lcjax.config import LlamaConfig, LoraConfig, parse_memory
from lcjax.memory.allocators import pinnable_bytes, raise_limits
from lcjax.model import ModelSettings
from lcjax.plan.fit import pinned_at_most
from lcjax.train.arguments import RunArguments


def prepare_devices(config: LlamaConfig, arguments: RunArguments) -> None:
    """Allows JAX the host memory that the run needs, and nearly all of the GPU's memory."""
    raise_limits(host_bytes_at_most(config, arguments, pinnable_bytes()))


def host_bytes_at_most(config: LlamaConfig, arguments: RunArguments, limit: int) -> int:
    """Bytes of host memory that a run pins at most, over all settings that pin up to `limit` bytes.

    Does not start JAX's devices.
    """
    adapter = LoraConfig(arguments.lora_r, arguments.lora_alpha, arguments.target_modules)
    settings = ModelSettings(
        arguments.max_seq_length,
        lora=None if arguments.full_finetuning else adapter,
        use_gradient_checkpointing=arguments.use_gradient_checkpointing,
        # The meaning of "auto" on a GPU; resolving it here would start the GPU.
        attention="pallas" if arguments.attention == "auto" else arguments.attention,
        memory=parse_memory(arguments.memory),
        loss_chunk=arguments.loss_chunk,
    )
    return pinned_at_most(config, settings, arguments, limit)
