"""What JAX's devices may take of the machine's memory, set before JAX starts them."""

from __future__ import annotations

from lcjax.config import LlamaConfig, LoraConfig, parse_memory
from lcjax.memory.allocators import pinnable_bytes, raise_limits
from lcjax.model import ModelSettings
from lcjax.plan.fit import pinned_at_most
from lcjax.train.arguments import RunArguments


def prepare_devices(config: LlamaConfig, arguments: RunArguments) -> None:
    """Lets JAX use as much host memory as the run needs, and nearly all of the GPU's memory."""
    raise_limits(host_bytes_at_most(config, arguments, pinnable_bytes()))


def host_bytes_at_most(config: LlamaConfig, arguments: RunArguments, limit: int) -> int:
    """Bytes that a run pins in host memory, of the settings that pin most within `limit` bytes; does not start JAX's devices."""
    adapter = LoraConfig(arguments.lora_r, arguments.lora_alpha, arguments.target_modules)
    settings = ModelSettings(
        arguments.max_seq_length,
        lora=None if arguments.full_finetuning else adapter,
        use_gradient_checkpointing=arguments.use_gradient_checkpointing,
        # What "auto" means on a GPU; resolving it here would start the GPU.
        attention="pallas" if arguments.attention == "auto" else arguments.attention,
        memory=parse_memory(arguments.memory),
        loss_chunk=arguments.loss_chunk,
    )
    return pinned_at_most(config, settings, arguments, limit)
