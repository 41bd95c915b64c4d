"""What a family of models is: its config.json, the table of its parameters, and what its attention sees.

Everything else follows from these. The names in Hugging Face's, llama.cpp's, PEFT's and bitsandbytes' files, the shapes, what
can be quantized or adapted, the FLOPs of a step and the planner's abstract parameters are read from the table. The model, the
tiled layers and the KV cache read what attention sees.

A family is plain data and needs no JAX. So it stands here, in the lowest package, where both the reader of config.json and the
model can reach it: a family is one file in this folder and one line in `lcjax.config.families`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

AXES: Mapping[str, Callable[[LlamaConfig], int]] = {
    "layers": lambda config: config.num_hidden_layers,
    "vocab": lambda config: config.vocab_size,
    "embed": lambda config: config.hidden_size,
    "heads": lambda config: config.num_attention_heads * config.head_dim,
    "kv_heads": lambda config: config.num_key_value_heads * config.head_dim,
    "head_dim": lambda config: config.head_dim,
    "mlp": lambda config: config.intermediate_size,
}
"""The logical axes of parameters and their sizes. `heads` and `kv_heads` are the features of all heads, head after head."""


@dataclasses.dataclass(frozen=True)
class AttentionView:
    """What every layer's attention sees of the tokens before it, and how it scores them.

    Attributes:
      window: the nearest tokens that are visible, the token itself included; None for all.
      soft_cap: scores become `soft_cap * tanh(score / soft_cap)`; None for none.
      scale: factor of the scores; None for `1 / sqrt(head_dim)`.
      qk_norm: whether each head's queries and keys pass an RMSNorm before RoPE (Dehghani et al., arXiv 2302.05442).
    """

    window: int | None = None
    soft_cap: float | None = None
    scale: float | None = None
    qk_norm: bool = False


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One row of a family's table: a leaf of the parameter tree, stacked over the layers where its first axis is `layers`.

    Attributes:
      path: its place in the parameter tree.
      hugging_face: its name in safetensors files, with `{layer}` for the number of the layer.
      gguf: its name in GGUF files, with `{layer}` too.
      axes: its logical axes, names of AXES.
      quantizable: whether it can be stored in four bits.
      adaptable: whether it can have a low-rank adapter.
      matmul: whether each token is multiplied with it, which costs FLOPs.
      interleaved: whether llama.cpp's converter interleaves the two halves of every head along the first of its own axes.
      stored: whether a checkpoint with a given config has it: biases and an untied head are optional.
    """

    path: tuple[str, ...]
    hugging_face: str
    gguf: str
    axes: tuple[str, ...]
    quantizable: bool = False
    adaptable: bool = False
    matmul: bool = False
    interleaved: bool = False
    stored: Callable[[LlamaConfig], bool] = lambda config: True

    @property
    def module(self) -> str:
        """The module that the leaf belongs to, e.g. `q_proj`."""
        return self.path[-2]

    @property
    def in_layers(self) -> bool:
        """Whether every layer has one."""
        return self.axes[0] == "layers"

    def shape(self, config: LlamaConfig) -> tuple[int, ...]:
        """One layer's, or the leaf's own where it is outside the layers."""
        axes = self.axes[1:] if self.in_layers else self.axes
        return tuple(AXES[axis](config) for axis in axes)

    def stacked_shape(self, config: LlamaConfig) -> tuple[int, ...]:
        """The leaf's in the parameter tree, all layers in one."""
        return tuple(AXES[axis](config) for axis in self.axes)


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A family of decoders.

    Attributes:
      model_type: its name in config.json.
      architecture: the class of transformers that config.json names.
      keys: the fields of LlamaConfig that its config.json has, with the values that transformers takes where one is missing.
      parameters: the table, in the order in which checkpoints are written.
      own_keys: keys of its config.json that no other family has, with their defaults; see `LlamaConfig.own_value`.
      ignored_keys: keys whose value in the file has no effect.
      sees: what attention sees in a model with a given config.
      gguf_architecture: its name in GGUF files; None where these cannot be read.
    """

    model_type: str
    architecture: str
    keys: Mapping[str, Any]
    parameters: tuple[Parameter, ...]
    own_keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ignored_keys: frozenset[str] = frozenset()
    sees: Callable[[LlamaConfig], AttentionView] = lambda config: AttentionView()
    gguf_architecture: str | None = None

    @functools.cached_property
    def by_path(self) -> Mapping[tuple[str, ...], Parameter]:
        """The rows of the table by their place in the tree."""
        return {row.path: row for row in self.parameters}

    @functools.cached_property
    def adaptable(self) -> Mapping[str, Parameter]:
        """The weights that can have an adapter, by module."""
        return {row.module: row for row in self.parameters if row.adaptable}

    def stored(self, config: LlamaConfig) -> Iterator[Parameter]:
        """The rows that a checkpoint with this config has."""
        return (row for row in self.parameters if row.stored(config))


def norm(name: str, gguf: str, axis: str, stored: Callable[[LlamaConfig], bool] = lambda config: True) -> Parameter:
    """The weight of a norm in every layer, e.g. `input_layernorm`."""
    return _in_layers(f"{name}.weight", f"{gguf}.weight", (axis,), stored=stored)


def linear(
    name: str,
    gguf: str,
    out_axis: str,
    in_axis: str,
    *,
    has_bias: Callable[[LlamaConfig], bool] = lambda config: False,
    interleaved: bool = False,
) -> tuple[Parameter, Parameter]:
    """A linear map in every layer, e.g. `self_attn.q_proj`: its weight [out, in], and its bias where the config has one."""
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


def _in_layers(name: str, gguf: str, axes: tuple[str, ...], **flags: Any) -> Parameter:
    path = ("layers", *name.split("."))
    return Parameter(path, f"model.layers.{{layer}}.{name}", f"blk.{{layer}}.{gguf}", ("layers", *axes), **flags)
