"""Which implementation computes a model's attention, and why.

Shapes: B batch, T tokens, H query heads, K key/value heads, d head_dim.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lcjax.config import LlamaConfig
from lcjax.config.execution import layer_forms
from lcjax.config.families import AttentionView
from lcjax.model import ModelSettings
from lcjax.ops.attention.call import AttentionCall
from lcjax.ops.attention.passes import has_passes, layer_call
from lcjax.ops.attention.registry import (
    automatic_choices,
    automatic_implementations,
    backend_of,
    choose_backend,
    reason_against,
)
from lcjax.pallas.triton.block_sizes import is_traced_for_gpu, traced_gpu, traced_with


def attention_names(requested: str, config: LlamaConfig, dtype: DTypeLike, platform: str | None) -> tuple[str, ...]:
    """The name of the implementation that computes the model's attention, and those of slower ones.

    Raises:
      InputError: the requested one is unknown, or does not support what some layer's attention
        sees, or the model's heads on a given platform. What depends on lengths, on the kind of GPU
        or on the default platform is checked when it is called.
    """
    found: list[tuple[str, ...]] = []

    def attend(calls: Sequence[AttentionCall], plain: AttentionCall) -> None:
        if requested == "auto":
            found.append(_choices_for_all(calls, platform))
        elif platform is not None or backend_of(requested).refusal(plain) is None:
            for call in calls:
                choose_backend(requested, call)

    _trace_calls(attend, config, dtype, platform)
    return found[0] if found else (backend_of(requested).name,)


def with_attention(settings: ModelSettings, name: str) -> ModelSettings:
    """The settings with another implementation of attention, of those that resolving left open.

    Args:
      name: the present implementation, which changes nothing, or one of
        `settings.execution.slower_attention`.
    """
    execution = settings.execution
    possible = (execution.attention, *execution.slower_attention)
    slower = possible[possible.index(name) + 1 :]
    forms = layer_forms(settings.requested, attention_has_passes=has_passes(name))
    execution = dataclasses.replace(execution, attention=name, slower_attention=slower, forms=forms)
    return dataclasses.replace(settings, execution=execution)


def why_attention(settings: ModelSettings, config: LlamaConfig, dtype: DTypeLike) -> str:
    """Why this implementation of attention was chosen for a Hopper GPU.

    Empty if the user named it, or on another device, where there is only one choice.
    """
    if settings.requested.attention != "auto" or jax.default_backend() != "gpu" or not traced_gpu().is_hopper:
        return ""
    attention = settings.execution.attention
    fastest = automatic_implementations()[0]
    if attention == fastest:
        return "the fastest on this GPU"
    reasons: list[str | None] = []
    _trace_calls(lambda calls, _: reasons.extend(reason_against(fastest, call) for call in calls), config, dtype, None)
    given = next(filter(None, reasons), None)
    if given is not None:
        return f"{fastest} {given.partition(';')[0]}"
    return f"{fastest} does not support a ring" if settings.execution.mesh.ring > 1 else f"{fastest} needs more memory"


def _trace_calls(
    attend: Callable[[Sequence[AttentionCall], AttentionCall], None],
    config: LlamaConfig,
    dtype: DTypeLike,
    platform: str | None,
) -> None:
    """Calls `attend` with the calls of all kinds of layers, and with one that sees everything.

    They have abstract arrays of few tokens. For the platform "gpu", JAX need not start.
    """

    def shape(heads: int) -> jax.ShapeDtypeStruct:
        # Some libraries need an even number of tokens.
        return jax.ShapeDtypeStruct((1, 2, heads, config.head_dim), dtype)

    def trace(q_BTHd, k_BTKd, sinks_H):
        plain = layer_call(q_BTHd, k_BTKd, k_BTKd, None, AttentionView())
        attend([layer_call(q_BTHd, k_BTKd, k_BTKd, None, view, sinks_H=sinks_H) for view in config.views], plain)
        return q_BTHd

    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    sinks_H = jax.ShapeDtypeStruct((heads,), jnp.float32) if config.family.has_sinks else None
    with traced_with() if platform == "gpu" and not is_traced_for_gpu() else contextlib.nullcontext():
        jax.eval_shape(trace, shape(heads), shape(kv_heads), sinks_H)


def _choices_for_all(calls: Sequence[AttentionCall], platform: str | None) -> tuple[str, ...]:
    """The implementations that support all calls, the fastest first; with kernels, only those."""
    first, *others = (automatic_choices(call, platform) for call in calls)
    names = [name for name in first if all(name in choices for choices in others)]
    return tuple(name for name in names if name != names[-1]) or (names[-1],)
