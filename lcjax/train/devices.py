"""The devices of a run: how much memory they may use, and how they share the work."""

from __future__ import annotations

import dataclasses
import logging
import math

import jax
import jax.numpy as jnp

from lcjax.config import LlamaConfig, LoraConfig, target_modules_of
from lcjax.config.parallel.mesh import MeshRequest, MeshShape
from lcjax.config.policies import OFFLOAD_ABOVE_TOKENS, saves_on_device
from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError, flag
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
    attention: str,
) -> MeshShape:
    """How all devices of JAX share the work of a run.

    Args:
      weights_bytes: of the model, without an adapter.
      attention: the name of an implementation, or "auto".

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
        attention=attention,
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
        attention=model.settings.execution.attention,
    )
    if mesh.size < jax.device_count():
        logger.warning(_idle(mesh, arguments.mesh_request))
    if model.settings.lora is None and mesh.size > 1 and not mesh.shard_axes and arguments.shard_weights == "auto":
        logger.warning(
            "every device has all weights and their optimizer's state, because the rows of some matrix cannot be divided; "
            "--shard-weights layers says which"
        )
    return mesh


def _idle(mesh: MeshShape, requested: MeshRequest) -> str:
    count = jax.device_count()
    sizes = {name: value for name, value in dataclasses.asdict(requested).items() if type(value) is int}
    idle = count - mesh.size
    line = f"{idle} of the {count} devices {'stays' if idle == 1 else 'stay'} idle; to use all, omit " + " and ".join(
        f"{flag(name)} {value}" for name, value in sizes.items()
    )
    if requested.data_parallel_size is None and count % mesh.context == 0:
        line += f", or give --gradient-accumulation-steps a multiple of {count // mesh.context}"
    return line


def host_bytes_at_most(config: LlamaConfig, arguments: RunArguments, limit: int) -> int:
    """Bytes of host memory that a run pins at most, over all settings that pin up to `limit` bytes.

    Does not start JAX's devices.
    """
    modules = target_modules_of(config.family, arguments.target_modules)
    adapter = LoraConfig(arguments.lora_r, arguments.lora_alpha, modules)
    tokens = arguments.max_seq_length
    if saves_on_device(arguments.use_gradient_checkpointing):
        # Nothing that it pins depends on the length, and no device has more tokens.
        tokens = min(tokens, OFFLOAD_ABOVE_TOKENS)
    settings = resolved_settings(
        arguments.execution_request,
        config,
        jnp.bfloat16,
        tokens,
        "gpu",  # asking JAX for the platform would start the GPU
        lora=None if arguments.full_finetuning else adapter,
        mesh=None,
    )
    return pinned_at_most(config, settings, arguments, limit)
