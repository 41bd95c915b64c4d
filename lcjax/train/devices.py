"""The devices of a run: how much memory they may use, and how they share the work."""

from __future__ import annotations

import logging
import math

import jax
import jax.numpy as jnp

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.config.parallel.mesh import MeshShape
from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError
from lcjax.memory.allocators import pinnable_bytes, raise_limits, visible_gpus
from lcjax.model import Llama, lora
from lcjax.parallel.processes import is_alone, processes_per_host
from lcjax.plan.choosing.budget import budget_here
from lcjax.plan.fit import pinned_at_most
from lcjax.step import Hardware, resolve_mesh, resolved_settings
from lcjax.train.arguments import RunArguments

logger = logging.getLogger("lcjax")


def prepare_devices(config: LlamaConfig, arguments: RunArguments) -> None:
    """Allows JAX the host memory that the run needs, and nearly all of the GPU's memory.

    GPUs that share a sequence pin together what one GPU would pin for it. Those with other
    micro-batches pin as much again.
    """
    groups = math.gcd(arguments.gradient_accumulation_steps, visible_gpus())
    raise_limits(groups * host_bytes_at_most(config, arguments, pinnable_bytes() // groups))


def mesh_of(
    config: LlamaConfig,
    arguments: TrainingArguments,
    *,
    max_seq_length: int,
    weights_bytes: int,
    trains_every_weight: bool,
) -> MeshShape:
    """How all devices of JAX share the work of a run.

    Args:
      weights_bytes: of the model, without an adapter.

    Raises:
      InputError: they cannot, or not as requested.
    """
    budget, of_a_host = budget_here(), jax.local_device_count() * processes_per_host()
    mesh = resolve_mesh(
        arguments.mesh_request,
        config,
        Hardware(jax.device_count(), of_a_host, None if budget is None else budget.device),
        max_seq_length=max_seq_length,
        micro_batches=arguments.gradient_accumulation_steps,
        weights_bytes=weights_bytes,
        trains_every_weight=trains_every_weight,
    )
    if mesh.size < jax.device_count() and not is_alone():
        raise InputError(
            f"the run would use {mesh.size} of the {jax.device_count()} devices of its processes; give "
            f"--context-parallel-size {jax.device_count()}, or start fewer processes"
        )
    return mesh


def mesh_of_model(model: Llama, arguments: TrainingArguments) -> MeshShape:
    """`mesh_of` for a model whose weights are loaded; the same as before they were."""
    base, _ = lora.detach(model.params)
    mesh = mesh_of(
        model.config,
        arguments,
        max_seq_length=model.settings.max_seq_length,
        weights_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(base)),
        trains_every_weight=model.settings.lora is None,
    )
    if model.settings.lora is None and mesh.size > 1 and not mesh.shard_axes and arguments.shard_weights == "auto":
        logger.warning(
            "every device has all weights and their optimizer's state, because the rows of some matrix cannot be divided; "
            "--shard-weights layers says which"
        )
    return mesh


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
