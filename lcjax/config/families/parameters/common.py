"""Rows of maps, norms, sinks, routers and experts, of which families compose their tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lcjax.config.families.parameters.row import Parameter

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

SINKS = Parameter(
    ("layers", "self_attn", "sinks"),
    "model.layers.{layer}.self_attn.sinks",
    "blk.{layer}.attn_sinks.weight",
    ("layers", "q_heads"),
)
"""A logit for each query head, which joins the softmax of attention without a key and a value.

It is a leaf of attention itself, not of a module in it. Source: OpenAI, gpt-oss model card, arXiv
2508.10925.
"""


def norm(
    name: str,
    gguf: str,
    axis: str,
    stored: Callable[[LlamaConfig], bool] = lambda config: True,
    *,
    gguf_offset: float = 0.0,
) -> Parameter:
    """The weight of a norm in every layer, e.g. `input_layernorm`."""
    return _in_layers(f"{name}.weight", f"{gguf}.weight", (axis,), stored=stored, gguf_offset=gguf_offset)


def linear(
    name: str,
    gguf: str,
    out_axis: str,
    in_axis: str,
    *,
    has_bias: Callable[[LlamaConfig], bool] = lambda config: False,
    interleaved: bool = False,
) -> tuple[Parameter, Parameter]:
    """A linear map in every layer, e.g. `self_attn.q_proj`: weight [out, in] and optional bias."""
    weight = _in_layers(
        f"{name}.weight",
        f"{gguf}.weight",
        (out_axis, in_axis),
        quantizable=True,
        adaptable=True,
        matmul=True,
        interleaved=interleaved,
    )
    return weight, _in_layers(f"{name}.bias", f"{gguf}.bias", (out_axis,), stored=has_bias, interleaved=interleaved)


def router(name: str, *, has_bias: bool = False) -> tuple[Parameter, ...]:
    """The weight [E, D] of a router and its bias, neither quantized nor adapted."""
    path, hugging_face, gguf = (
        ("layers", "mlp", "router"),
        f"model.layers.{{layer}}.mlp.{name}",
        "blk.{layer}.ffn_gate_inp",
    )
    axes = "layers", "num_experts", "embed"
    weight = Parameter((*path, "weight"), f"{hugging_face}.weight", f"{gguf}.weight", axes, matmul=True)
    bias = Parameter((*path, "bias"), f"{hugging_face}.bias", f"{gguf}.bias", axes[:2])
    return (weight, bias) if has_bias else (weight,)


def expert_linear(name: str, gguf: str, out_axis: str, in_axis: str) -> Parameter:
    """The weight [E, out, in] of a linear map of every expert, e.g. `gate_proj`."""
    return _in_experts(f"{{expert}}.{name}.weight", f"{gguf}.weight", (name, "weight"), (out_axis, in_axis))


def joint_expert_linear(
    name: str, gguf: str, out_axis: str, in_axis: str, *, gguf_odd: str | None = None
) -> tuple[Parameter, ...]:
    """A linear map of every expert whose weight and bias are one tensor each for all experts."""

    def of(kind: str, suffix: str, axes: tuple[str, ...]) -> Parameter:
        odd = None if gguf_odd is None else f"{gguf_odd}.{kind}"
        return _in_experts(f"{name}{suffix}[{{expert}}]", f"{gguf}.{kind}", (name, kind), axes, odd)

    return of("weight", "", (out_axis, in_axis)), of("bias", "_bias", (out_axis,))


def _in_experts(
    name: str, gguf: str, path: tuple[str, str], axes: tuple[str, ...], gguf_odd: str | None = None
) -> Parameter:
    is_matrix = len(axes) == 2
    return Parameter(
        ("layers", "mlp", "experts", *path),
        f"model.layers.{{layer}}.mlp.experts.{name}",
        f"blk.{{layer}}.{gguf}",
        ("layers", "experts", *axes),
        quantizable=is_matrix,
        adaptable=is_matrix,
        matmul=is_matrix,
        gguf_odd=None if gguf_odd is None else f"blk.{{layer}}.{gguf_odd}",
    )


def _in_layers(name: str, gguf: str, axes: tuple[str, ...], **flags: Any) -> Parameter:
    path = ("layers", *name.split("."))
    return Parameter(path, f"model.layers.{{layer}}.{name}", f"blk.{{layer}}.{gguf}", ("layers", *axes), **flags)
