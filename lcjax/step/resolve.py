"""From what a user requests to how the model runs, with nothing left open.

Shapes: B batch, T tokens, H query heads, K key/value heads, d head_dim.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax.typing import DTypeLike

from lcjax.config import Execution, ExecutionRequest, LlamaConfig, LoraConfig, MemorySettings
from lcjax.config.execution import layer_forms
from lcjax.config.memory import check_head_groups
from lcjax.config.parallel.mesh import ONE_DEVICE, MeshRequest, MeshShape, choose_mesh, choose_shard_axes
from lcjax.config.policies import check_policy, check_policy_name
from lcjax.model import ModelSettings
from lcjax.ops.attention.passes import has_passes
from lcjax.ops.attention.registry import backend_of
from lcjax.ops.rope.api import rope_for
from lcjax.step.attention import attention_names, with_attention


def resolve(
    requested: ExecutionRequest, config: LlamaConfig, dtype: DTypeLike, platform: str | None = None
) -> Execution:
    """The execution of a model on a platform.

    Args:
      requested: what the user asks for.
      dtype: of the activations.
      platform: a platform of JAX, such as "gpu"; None is the default one, whose devices JAX starts.

    Raises:
      InputError: a name is unknown, or the requested implementation of attention or the groups of
        heads do not support the model's layers.
    """
    if isinstance(requested.memory, MemorySettings):
        groups, family = requested.memory.head_groups, config.family
        check_head_groups(groups, config.num_key_value_heads, family.has_separate_heads)
    attention, *slower = attention_names(requested.attention, config, dtype, platform)
    return Execution(
        attention=attention,
        rope=rope_for(requested.attention, platform),
        forms=layer_forms(requested, attention_has_passes=has_passes(attention)),
        loss_chunk=requested.loss_chunk,
        slower_attention=tuple(slower),
    )


def resolved_settings(
    requested: ExecutionRequest,
    config: LlamaConfig,
    dtype: DTypeLike,
    max_seq_length: int,
    platform: str | None = None,
    *,
    lora: LoraConfig | None = None,
    name_or_path: str = "",
    one_document_a_row: bool = False,
    generation_config: str | None = None,
    mesh: MeshShape | None = ONE_DEVICE,
) -> ModelSettings:
    """The settings of a model that runs as requested.

    Arguments are those of `resolve` and `ModelSettings`, and `mesh`: the devices that share the
    work. If they are not known yet, it is None, and `with_mesh` checks the policy when they are.

    Raises:
      InputError: as `resolve`, or the policy is not allowed for a device's tokens.
    """
    check_policy_name(requested.use_gradient_checkpointing)
    settings = ModelSettings(
        max_seq_length,
        name_or_path,
        lora,
        resolve(requested, config, dtype, platform),
        requested,
        one_document_a_row,
        generation_config,
    )
    return settings if mesh is None else with_mesh(settings, mesh)


def with_request(
    settings: ModelSettings, *, mesh_is_known: bool = True, **changes: str | MemorySettings | int | None
) -> ModelSettings:
    """The settings with other choices about layers and loss; attention and RoPE do not change.

    Args:
      mesh_is_known: if not, `with_mesh` checks later whether the policy is allowed.
      changes: fields of `ExecutionRequest` other than `attention`.

    Raises:
      InputError: a name is unknown, or the policy is not allowed for a device's tokens.
    """
    requested = dataclasses.replace(settings.requested, **changes)  # pyright: ignore[reportArgumentType]
    check_policy_name(requested.use_gradient_checkpointing)
    if mesh_is_known:
        _check_policy_on(settings.execution.mesh, requested, settings.max_seq_length)
    forms = layer_forms(requested, attention_has_passes=has_passes(settings.execution.attention))
    execution = dataclasses.replace(settings.execution, forms=forms, loss_chunk=requested.loss_chunk)
    return dataclasses.replace(settings, requested=requested, execution=execution)


# Arrays [tokens, head_dim] in the backward pass of one head of a device: queries, keys, values, the
# output, their cotangents, and what is being exchanged. Measured with compiled steps.
_ARRAYS_OF_A_HEAD = 16


@dataclasses.dataclass(frozen=True)
class Hardware:
    """The devices of a run; `device_bytes` is the memory of each, None if it is not limited."""

    devices: int
    devices_per_host: int
    device_bytes: int | None = None


def resolve_mesh(
    requested: MeshRequest,
    config: LlamaConfig,
    hardware: Hardware,
    *,
    max_seq_length: int,
    micro_batches: int,
    weights_bytes: int,
    trains_every_weight: bool,
    attention: str,
) -> MeshShape:
    """The mesh of a run; see `lcjax.config.parallel.mesh`.

    Args:
      weights_bytes: of the model.
      attention: the requested implementation; it decides whether a ring is possible.

    Raises:
      InputError: the devices cannot share the work, or not as requested.
    """
    mesh = choose_mesh(
        requested,
        devices=hardware.devices,
        devices_per_host=hardware.devices_per_host,
        tokens=max_seq_length,
        micro_batches=micro_batches,
        query_heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        most_tokens_of_a_head=_most_tokens_of_a_head(config, attention, hardware.device_bytes),
    )
    too_large = hardware.device_bytes is not None and 2 * weights_bytes > hardware.device_bytes
    rows = {row.shape(config)[0] for row in config.family.stored(config) if len(row.shape(config)) == 2}
    needed = mesh.size > 1 and (trains_every_weight or too_large)
    return choose_shard_axes(requested, mesh, hardware.devices_per_host, rows, needed=needed)


def _most_tokens_of_a_head(config: LlamaConfig, attention: str, device_bytes: int | None) -> int | None:
    """How many tokens of one head take 3/10 of a GPU; None if attention has no ring."""
    names = attention_names(attention, config, jnp.bfloat16, "gpu")
    if device_bytes is None or not any(_has_ring(name) for name in names):
        return None
    bytes_of_a_token = _ARRAYS_OF_A_HEAD * config.head_dim * jnp.dtype(jnp.bfloat16).itemsize
    # Less would lengthen the ring of a 70B, which needs as much memory with one. More would not let
    # an 8B fit that fits with a ring.
    return 3 * device_bytes // (10 * bytes_of_a_token)


def _has_ring(attention: str) -> bool:
    return backend_of(attention).lse_form is not None


def with_mesh(settings: ModelSettings, mesh: MeshShape) -> ModelSettings:
    """The settings of a model that runs on a mesh of devices.

    In a ring, attention is the fastest implementation that can join the results of several devices.

    Raises:
      InputError: the policy is not allowed for a device's tokens.
    """
    _check_policy_on(mesh, settings.requested, settings.max_seq_length)
    execution = settings.execution
    if mesh.ring > 1 and not _has_ring(execution.attention):
        joining = filter(_has_ring, execution.slower_attention)
        settings = with_attention(settings, next(joining, execution.attention))
    return dataclasses.replace(settings, execution=dataclasses.replace(settings.execution, mesh=mesh))


def _check_policy_on(mesh: MeshShape, requested: ExecutionRequest, max_seq_length: int) -> None:
    check_policy(requested.use_gradient_checkpointing, -(-max_seq_length // mesh.context))
