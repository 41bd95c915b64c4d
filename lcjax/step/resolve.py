"""From what a user requests to how the model runs: the only place where "auto" is replaced.

Shapes: B batch, T tokens, H query heads, K key/value heads, d head_dim.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lcjax.config import Execution, ExecutionRequest, LlamaConfig, LoraConfig, MemorySettings
from lcjax.config.execution import layer_forms
from lcjax.config.families import AttentionView
from lcjax.config.memory import check_head_groups
from lcjax.config.parallel.mesh import ONE_DEVICE, MeshRequest, MeshShape, choose_mesh, choose_shard_axes
from lcjax.config.policies import check_policy, check_policy_name
from lcjax.model import ModelSettings
from lcjax.ops.attention.call import AttentionCall
from lcjax.ops.attention.passes import has_passes, layer_call
from lcjax.ops.attention.registry import backend_of, choose_backend
from lcjax.ops.rope.api import rope_for
from lcjax.pallas.triton.block_sizes import is_traced_for_gpu, traced_with


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
    attention = _attention(requested.attention, config, dtype, platform)
    return Execution(
        attention=attention,
        rope=rope_for(requested.attention, platform),
        forms=layer_forms(requested, attention_has_passes=has_passes(attention)),
        loss_chunk=requested.loss_chunk,
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
    if device_bytes is None or backend_of(_attention(attention, config, jnp.bfloat16, "gpu")).lse_form is None:
        return None
    bytes_of_a_token = _ARRAYS_OF_A_HEAD * config.head_dim * jnp.dtype(jnp.bfloat16).itemsize
    # Less would lengthen the ring of a 70B, which needs as much memory with one. More would not let
    # an 8B fit that fits with a ring.
    return 3 * device_bytes // (10 * bytes_of_a_token)


def with_mesh(settings: ModelSettings, mesh: MeshShape) -> ModelSettings:
    """The settings of a model that runs on a mesh of devices.

    Raises:
      InputError: the policy is not allowed for a device's tokens.
    """
    _check_policy_on(mesh, settings.requested, settings.max_seq_length)
    return dataclasses.replace(settings, execution=dataclasses.replace(settings.execution, mesh=mesh))


def _check_policy_on(mesh: MeshShape, requested: ExecutionRequest, max_seq_length: int) -> None:
    check_policy(requested.use_gradient_checkpointing, -(-max_seq_length // mesh.context))


def _attention(requested: str, config: LlamaConfig, dtype: DTypeLike, platform: str | None) -> str:
    """The name of the implementation that computes the model's attention.

    Raises:
      InputError: the requested one is unknown, or does not support what some layer's attention
        sees, or the model's heads on a given platform. What depends on lengths, on the kind of GPU
        or on the default platform is checked when it is called.
    """

    def shape(heads: int) -> jax.ShapeDtypeStruct:
        # Some libraries need an even number of tokens.
        return jax.ShapeDtypeStruct((1, 2, heads, config.head_dim), dtype)

    chosen = []

    def attend(q_BTHd, k_BTKd, sinks_H):
        calls = [layer_call(q_BTHd, k_BTKd, k_BTKd, None, view, sinks_H=sinks_H) for view in config.views]
        if requested == "auto":
            chosen.append(_choose_for_all(calls, platform))
            return q_BTHd
        without_view = layer_call(q_BTHd, k_BTKd, k_BTKd, None, AttentionView())
        if platform is not None or backend_of(requested).refusal(without_view) is None:
            for call in calls:
                choose_backend(requested, call)
        return q_BTHd

    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    sinks_H = jax.ShapeDtypeStruct((heads,), jnp.float32) if config.family.has_sinks else None
    # JAX need not start if the platform is known.
    with traced_with() if platform == "gpu" and not is_traced_for_gpu() else contextlib.nullcontext():
        jax.eval_shape(attend, shape(heads), shape(kv_heads), sinks_H)
    return chosen[0] if chosen else backend_of(requested).name


def _choose_for_all(calls: Sequence[AttentionCall], platform: str | None) -> str:
    """The first choice for one of the calls that supports all of them."""
    names = [choose_backend("auto", call, platform).name for call in calls]
    return next(name for name in names if all(backend_of(name).refusal(call) is None for call in calls))
