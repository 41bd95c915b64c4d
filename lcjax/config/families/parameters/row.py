"""A row of a table of parameters: a leaf's names, its logical axes, and how it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

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
