"""What defines a family of models: config.json, the table of parameters, and attention's view.

Everything else follows from these. The table gives the names in Hugging Face, llama.cpp, PEFT and
bitsandbytes files, the shapes, what can be quantized or adapted, the FLOPs of a step, and the
planner's abstract parameters. The model, the tiled layers and the KV cache use attention's view.

A family is plain data and needs no JAX. So it is in the lowest package, where both the reader of
config.json and the model can import it. A family is one file in this folder and one line in
`lcjax.config.families`; `lcjax.config.families.parameters` has what tables consist of.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lcjax.config.families.experts import Experts
from lcjax.config.families.parameters.common import SINKS
from lcjax.config.families.parameters.norms import PRE_NORMS, Norms
from lcjax.config.families.parameters.row import Parameter

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig


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
