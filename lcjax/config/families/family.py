"""What defines a family of models: config.json, the table of parameters, and attention's view.

Everything else follows from these. The table gives the names in Hugging Face, llama.cpp, PEFT and
bitsandbytes files, the shapes, what can be quantized or adapted, the FLOPs of a step, and the
planner's abstract parameters. The model, the tiled layers and the KV cache use attention's view.

A family is plain data and needs no JAX. So it is in the lowest package, where both the reader of
config.json and the model can import it. A family is one file in this folder and one line in
`lcjax.config.families`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lcjax.config.families.experts import Experts

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

AXES: Mapping[str, Callable[[LlamaConfig], int]] = {
    "layers": lambda config: config.num_hidden_layers,
    "vocab": lambda config: config.vocab_size,
    "embed": lambda config: config.hidden_size,
    "heads": lambda config: config.num_attention_heads * config.head_dim,
    "kv_heads": lambda config: config.num_key_value_heads * config.head_dim,
    "heads_and_kv_heads": lambda config: (
        (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    ),
    "head_dim": lambda config: config.head_dim,
    "q_heads": lambda config: config.num_attention_heads,
    "mlp": lambda config: config.intermediate_size,
    "gate_and_mlp": lambda config: 2 * config.intermediate_size,
    "experts": lambda config: config.experts.count,
    "num_experts": lambda config: config.experts.count,
    "expert_mlp": lambda config: config.experts.width,
    "expert_gate_and_mlp": lambda config: 2 * config.experts.width,
}
"""The logical axes of parameters and their sizes.

`heads` and `kv_heads` are the features of all heads, one head after another. In
`heads_and_kv_heads`, those of queries are followed by those of keys and of values. `q_heads` has
one number for each query head. `experts` is an axis of a matrix for each expert, and `num_experts`
one of a feature for each.
"""


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Which frequencies rotate a layer's queries and keys.

    Attributes:
      theta: the base of frequencies without scaling; None for the base and scaling of the model's
        config.
      rotates: False for a layer without rotary positions (NoPE; Kazemnejad et al., arXiv
        2305.19466).
    """

    theta: float | None = None
    rotates: bool = True


@dataclasses.dataclass(frozen=True)
class AttentionView:
    """Which earlier tokens a layer's attention sees, and how it scores them.

    Attributes:
      window: the number of nearest visible tokens, including the token itself; None for all.
      soft_cap: scores become `soft_cap * tanh(score / soft_cap)`; None for no cap.
      scale: factor of the scores; None for `1 / sqrt(head_dim)`.
      rotary: how queries and keys are rotated before attention.
    """

    window: int | None = None
    soft_cap: float | None = None
    scale: float | None = None
    rotary: Rotary = Rotary()


@dataclasses.dataclass(frozen=True)
class Norms:
    """A layer's norms by name, None where it has none, and how all norms use their weights.

    Attributes:
      before_attention, before_mlp: of the residual stream, before attention and the MLP read it.
      after_attention, after_mlp: of their results, before these are added to the residual stream.
      offset: normalized values are multiplied by `offset + weight`.
      in_float32: whether they are rounded to the dtype of activations after the product, and not
        before it.
    """

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    offset: float = 0.0
    in_float32: bool = False

    @property
    def of_layer(self) -> tuple[str, ...]:
        """The names of the norms that a layer has."""
        names = self.before_attention, self.after_attention, self.before_mlp, self.after_mlp
        return tuple(name for name in names if name is not None)


PRE_NORMS = Norms()
"""Those of Llama, before attention and before the MLP."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One row of a family's table: a leaf of the parameter tree.

    It is stacked over the layers if its first axis is `layers`.

    Attributes:
      path: its place in the parameter tree.
      hugging_face: its name in safetensors files, with `{layer}` for the layer's number, and
        `{expert}` for the expert's. `X[{expert}]` is an expert's part of a tensor X of all experts;
        see `lcjax.weights.experts`.
      gguf: its name in GGUF files, also with `{layer}`.
      gguf_odd: the name of the tensor with rows 1, 3, ... if `gguf` has only rows 0, 2, ...; None
        for most parameters.
      axes: its logical axes, names of AXES.
      quantizable: whether it can be stored in 4 bits.
      adaptable: whether it can have a low-rank adapter.
      matmul: whether each token is multiplied by it, which costs FLOPs.
      interleaved: whether llama.cpp's converter interleaves the two halves of every head along the
        first axis after `layers`.
      gguf_offset: what llama.cpp's converter adds to the values.
      stored: whether a checkpoint with a given config has it; biases and an untied head are
        optional.
    """

    path: tuple[str, ...]
    hugging_face: str
    gguf: str
    axes: tuple[str, ...]
    quantizable: bool = False
    adaptable: bool = False
    matmul: bool = False
    interleaved: bool = False
    gguf_offset: float = 0.0
    gguf_odd: str | None = None
    stored: Callable[[LlamaConfig], bool] = lambda config: True

    @property
    def module(self) -> str:
        """The module that the leaf belongs to, e.g. `q_proj`."""
        return self.path[-2]

    @property
    def in_layers(self) -> bool:
        """Whether every layer has this parameter."""
        return self.axes[0] == "layers"

    @property
    def in_experts(self) -> bool:
        """Whether every expert of a layer has this parameter."""
        return self.axes[:2] == ("layers", "experts")

    @property
    def is_joint(self) -> bool:
        """Whether one tensor of a checkpoint has this parameter of all experts of a layer."""
        return self.hugging_face.endswith("[{expert}]")

    def stacks(self, config: LlamaConfig) -> tuple[int, ...]:
        """The sizes of the leaf's leading axes, of layers and of experts."""
        return tuple(AXES[axis](config) for axis in self.axes[: self._stacked_axes])

    def shape(self, config: LlamaConfig) -> tuple[int, ...]:
        """The shape in one expert or layer; for a leaf outside the layers, its own shape."""
        return tuple(AXES[axis](config) for axis in self.axes[self._stacked_axes :])

    @property
    def _stacked_axes(self) -> int:
        return self.in_layers + self.in_experts

    def uses_per_token(self, config: LlamaConfig) -> int:
        """How many matrices of the leaf each token is multiplied by."""
        layers = config.num_hidden_layers if self.in_layers else 1
        return layers * (config.experts.per_token if self.in_experts else 1)

    def stacked_shape(self, config: LlamaConfig) -> tuple[int, ...]:
        """The leaf's shape in the parameter tree, with all layers stacked."""
        return tuple(AXES[axis](config) for axis in self.axes)


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


@dataclasses.dataclass(frozen=True)
class Composite:
    """Models with other parts, such as for images, whose language model is of a family.

    Attributes:
      model_type: theirs in config.json, which has the language model's as `text_config`.
      prefixes: of the language model's tensors in safetensors files, and what they are in a model
        of the family; the first one that a name has is replaced.
      others: prefixes of the tensors of other parts, which are not read.
    """

    model_type: str
    prefixes: Mapping[str, str]
    others: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A family of decoders.

    Attributes:
      model_type: its name in config.json.
      architecture: the class of transformers that config.json names.
      keys: the fields of LlamaConfig in its config.json, with transformers' default for a missing
        one.
      parameters: the table, in the order in which checkpoints are written. If it has `q_norm` and
        `k_norm`, queries and keys pass an RMSNorm before RoPE, over a head or over all heads by the
        size of its weight (Dehghani et al., arXiv 2302.05442).
      norms: where a layer has the norms of the table.
      activation: transformers' name of the MLP's activation.
      activation_key: the key of config.json that has this name.
      embedding_scale: the factor of embeddings.
      logit_cap: logits become `cap * tanh(logit / cap)`; None for no cap.
      own_keys: keys of its config.json that no other family has, with their defaults; see
        `LlamaConfig.own_value`.
      sees: what attention sees in a layer of a model with a given config.
      experts: those of a model with a given config; None if its MLP is dense.
      refusal: why a model with a given config is not supported; None if it is.
      composite: larger models that contain a model of this family.
      flattened: its config.json with every value under the key of `keys` or `own_keys`; the second
        argument is the file's name for messages.
      rope_kinds: the kinds of RoPE that transformers' class supports; None for all of them.
      written: config.json as transformers' class reads it, from what most families write.
      stored_formats: quant_methods of config.json that checkpoints of the family may have, in
        addition to bitsandbytes.
      gguf_architecture: its name in GGUF files; None if the format has no such family. If families
        share a name, a file with it is read as the first of them in `lcjax.config.families`.
      gguf_keys: the metadata that only some families have in GGUF files: the key without the
        architecture, such as `attention.sliding_window`, and the field of LlamaConfig or own key
        of config.json with its value. Both the reader and the writer use it. A value of None is
        not written.
      gguf_rope_factors: whether llama.cpp reads `rope_freqs.weight` for this architecture, which
        has the divisors of Llama 3's RoPE scaling.
      gguf_yarn_truncates: whether models of this architecture round the limits of YaRN
        (`truncate`), which has no place in a file.
      gguf_longrope: whether llama.cpp reads the two lists of divisors of longrope for this
        architecture, and rotates only a part of each head.
      gguf_refusal: what GGUF files cannot express of a model with a given config, beyond the
        general rules of `lcjax.weights.gguf.metadata`; None if nothing.
      gguf_derived: own values that GGUF files do not have, because llama.cpp derives them from the
        sizes of the model.
    """

    model_type: str
    architecture: str
    keys: Mapping[str, Any]
    parameters: tuple[Parameter, ...]
    norms: Norms = PRE_NORMS
    activation: str = "silu"
    activation_key: str = "hidden_act"
    embedding_scale: Callable[[LlamaConfig], float] = lambda config: 1.0
    logit_cap: Callable[[LlamaConfig], float | None] = lambda config: None
    own_keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sees: Callable[[LlamaConfig, int], AttentionView] = lambda config, layer: AttentionView()
    experts: Callable[[LlamaConfig], Experts | None] = lambda config: None
    refusal: Callable[[LlamaConfig], str | None] = lambda config: None
    composite: Composite | None = None
    flattened: Callable[[Mapping[str, Any], str], Mapping[str, Any]] = lambda config, source: config
    rope_kinds: Collection[str] | None = None
    written: Callable[[dict[str, Any]], dict[str, Any]] = lambda values: values
    stored_formats: Collection[str] = ()
    gguf_architecture: str | None = None
    gguf_keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gguf_rope_factors: bool = False
    gguf_yarn_truncates: bool = True
    gguf_longrope: bool = False
    gguf_refusal: Callable[[LlamaConfig], str | None] = lambda config: None
    gguf_derived: Callable[[LlamaConfig], Mapping[str, Any]] = lambda config: {}

    @functools.cached_property
    def by_path(self) -> Mapping[tuple[str, ...], Parameter]:
        """The rows of the table by path in the tree."""
        return {row.path: row for row in self.parameters}

    @property
    def has_separate_heads(self) -> bool:
        """Whether a head's queries and keys do not depend on other heads."""
        rows = (self.by_path.get(("layers", "self_attn", name, "weight")) for name in ("q_norm", "k_norm"))
        return all(row is None or row.axes[-1] == "head_dim" for row in rows)

    @property
    def has_sinks(self) -> bool:
        """Whether a sink joins the softmax of every head."""
        return SINKS.path in self.by_path

    @functools.cached_property
    def adaptable(self) -> Mapping[str, Parameter]:
        """The weights that can have an adapter, by module."""
        return {row.module: row for row in self.parameters if row.adaptable}

    def stored(self, config: LlamaConfig) -> Iterator[Parameter]:
        """The rows that a checkpoint with this config has."""
        return (row for row in self.parameters if row.stored(config))


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
