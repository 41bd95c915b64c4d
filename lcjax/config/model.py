"""The config of a decoder of the Llama family."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lcjax.config.families import DEFAULT_FAMILY, FAMILIES, AttentionView, Experts, Family, Rotary, windows
from lcjax.config.families.parameters.decoder import decoder_parameters
from lcjax.config.reading import read_fields, read_json_file
from lcjax.config.rope import UNSCALED, RopeScaling
from lcjax.errors import InputError

EMBEDDING_MODULES = tuple(row.module for row in decoder_parameters() if "vocab" in row.axes)
"""The modules whose weight is [V, D]; a model with tied embeddings has only the first."""
_SIZES = """
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim max_position_embeddings
""".split()
_OF_SOME_FAMILIES = "attention_bias", "mlp_bias", "sliding_window"
# Sizes are int32 in every program. The deepest models have a few hundred layers. The limit on
# layers bounds the list of names that is built before any tensor is read.
_INT32 = 2**31 - 1
_LIMITS = {"num_hidden_layers": 10_000}


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shape of a decoder, under config.json's names; `model_type` names its family.

    Sizes are element counts, `max_position_embeddings` is in tokens. `head_dim` need not be
    `hidden_size / num_attention_heads`. RoPE rotates the first `partial_rotary_factor` of a head's
    dimensions. In layers with a window, each token attends to the last `sliding_window` tokens,
    including itself; `views` says which layers have one. `own_values` are (key, value) pairs that
    only its family's config.json has.

    Raises:
      InputError: a value has the wrong type or is out of range, the head counts do not divide,
        head_dim is odd, the RoPE settings do not match, or the family does not support the model.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = UNSCALED
    partial_rotary_factor: float = 1.0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    sliding_window: int | None = None
    model_type: str = DEFAULT_FAMILY.model_type
    own_values: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        if self.model_type not in FAMILIES:
            raise self._fault("model_type", f"is not a family of models; use one of {', '.join(FAMILIES)}")
        for name in _SIZES:
            value, limit = getattr(self, name), _LIMITS.get(name, _INT32)
            if not _is_integer(value) or not 0 < value <= limit:
                raise self._fault(name, f"must be a positive integer, at most {limit:,}")
        for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
            if not isinstance(getattr(self, name), bool):
                raise self._fault(name, "must be true or false")
        eos = self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)
        for name, ids in (("bos_token_id", (self.bos_token_id,)), ("eos_token_id", eos)):
            if not all(token is None or _is_integer(token) for token in ids):
                raise self._fault(name, "must be the id of a token")
        if self.sliding_window is not None and not (_is_integer(self.sliding_window) and self.sliding_window > 0):
            raise self._fault("sliding_window", "must be a positive number of tokens, or null")
        if self.sliding_window is not None and "sliding_window" not in self.family.keys:
            raise self._fault("sliding_window", f"has no meaning in a {self.model_type} model")
        eps = self.rms_norm_eps
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
            raise self._fault("rms_norm_eps", "must be a number above 0 and below 1")
        self._check_heads()
        kind, kinds = self.rope_scaling.rope_type, self.family.rope_kinds
        if kinds is not None and kind not in kinds:
            raise InputError(
                f"rope_type={kind!r} has no meaning in a {self.model_type} model; use one of {', '.join(kinds)}"
            )
        if (refusal := self.family.refusal(self)) is not None:
            if len(refusal) > 300:  # the value is in the middle, and may be megabytes long
                refusal = f"{refusal[:60]}...{refusal[-100:]}"
            raise InputError(f"{self.model_type}: {refusal} in the model's config")

    def _check_heads(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise self._fault(
                "num_attention_heads", f"is not a multiple of num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise self._fault("head_dim", "must be even: RoPE rotates pairs")
        if not 0.0 < self.partial_rotary_factor <= 1.0 or self.rotary_dim < 1:
            raise self._fault(
                "partial_rotary_factor",
                f"must be above 0 and at most 1, so that part of head_dim={self.head_dim} is rotated",
            )
        for name in ("short_factor", "long_factor") if self.rope_scaling.rope_type == "longrope" else ():
            if (count := len(getattr(self.rope_scaling, name))) != (pairs := (self.rotary_dim + 1) // 2):
                raise InputError(f"{name} in the model's config has {count} numbers for {pairs} rotated pairs")

    def _fault(self, name: str, what: str) -> InputError:
        # A value from a file may be megabytes long.
        value = repr(getattr(self, name))
        value = value if len(value) <= 60 else f"{value[:60]}..."
        return InputError(f"{name}={value} in the model's config {what}")

    @property
    def family(self) -> Family:
        """The family that model_type names, with the table of the model's parameters."""
        return FAMILIES[self.model_type]

    @property
    def experts(self) -> Experts:
        """The experts of a layer.

        Raises:
          ValueError: the model has none.
        """
        if (experts := self.family.experts(self)) is None:
            raise ValueError(f"a {self.model_type} model has no experts")
        return experts

    @property
    def views(self) -> tuple[AttentionView, ...]:
        """What attention sees, in the layers in which that differs; one for most models.

        Their `rotary` is the default, because attention does not depend on it.
        """
        return tuple(dict.fromkeys(self._view_of_every_layer))

    @property
    def view_of_layer(self) -> tuple[int, ...]:
        """For every layer, the index of its view in `views`."""
        return tuple(map(self.views.index, self._view_of_every_layer))

    @property
    def rotaries(self) -> tuple[Rotary, ...]:
        """How queries and keys are rotated, in the layers in which that differs."""
        return tuple(dict.fromkeys(self._rotary_of_every_layer))

    @property
    def rotary_of_layer(self) -> tuple[int, ...]:
        """For every layer, the index of its rotation in `rotaries`."""
        return tuple(map(self.rotaries.index, self._rotary_of_every_layer))

    @property
    def _view_of_every_layer(self) -> list[AttentionView]:
        return [dataclasses.replace(view, rotary=Rotary()) for view in self._seen_by_every_layer]

    @property
    def _rotary_of_every_layer(self) -> list[Rotary]:
        return [view.rotary for view in self._seen_by_every_layer]

    @property
    def _seen_by_every_layer(self) -> list[AttentionView]:
        return [self.family.sees(self, layer) for layer in range(self.num_hidden_layers)]

    def own_value(self, key: str) -> Any:
        """The value of one of the family's own keys of config.json."""
        return dict(self.own_values).get(key, self.family.own_keys[key])

    def with_own_value(self, key: str, value: Any) -> LlamaConfig:
        """This model with another value of one of the family's own keys."""
        others = tuple(pair for pair in self.own_values if pair[0] != key)
        return dataclasses.replace(self, own_values=(*others, (key, value)))

    @classmethod
    def from_dict(cls, config: dict[str, Any], *, source: str = "config.json") -> LlamaConfig:
        """Reads the dictionary of a Hugging Face config.json, with transformers' defaults.

        Args:
          config: the parsed config.json, with `rope_scaling` (old) or `rope_parameters` (new).
          source: the name of the dictionary in an error message.

        Raises:
          InputError: the architecture is not supported, a required key is missing, a value is out
            of range, or an option is set that would change the result and is not implemented.
        """
        fields = read_fields(config, source)
        try:
            read = cls(**fields)
            kinds = None if "layer_types" in read.family.own_keys else config.get("layer_types")
            if kinds is not None and (reason := windows.contradiction(read, kinds)):
                raise InputError(reason)
            return read
        except InputError as error:
            raise InputError(f"{source}: {error}; correct it, or download the model again") from None

    @classmethod
    def from_json(cls, path: Path) -> LlamaConfig:
        """Reads a config.json file; see `from_dict`."""
        return cls.from_dict(read_json_file(path), source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The config.json from which transformers (4 and 5) builds the same model."""
        family = self.family
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["own_values"]
        if isinstance(self.eos_token_id, tuple):
            fields["eos_token_id"] = list(self.eos_token_id)
        fields["rope_scaling"] = self.rope_scaling.to_dict()
        if self.partial_rotary_factor == 1.0:
            del fields["partial_rotary_factor"]  # no Llama of transformers has it
        for name in _OF_SOME_FAMILIES:
            if name not in family.keys:
                del fields[name]
        own = {key: self.own_value(key) for key in family.own_keys}
        own = {key: list(value) if isinstance(value, tuple) else value for key, value in own.items()}
        kind = {"architectures": [family.architecture], family.activation_key: family.activation}
        return family.written({**kind, **fields, **own})

    @property
    def rotary_dim(self) -> int:
        """How many of a head's dimensions RoPE rotates, in pairs."""
        return int(self.head_dim * self.partial_rotary_factor)

    def with_rope_of(self, other: LlamaConfig) -> LlamaConfig:
        """This model with the RoPE and the context length of another."""
        names = "rope_theta", "rope_scaling", "partial_rotary_factor", "max_position_embeddings"
        return dataclasses.replace(self, **{name: getattr(other, name) for name in names})

    def linear_shapes(self) -> dict[str, tuple[int, ...]]:
        """(out_features, in_features) of each linear map of a layer or expert, by module name."""
        return {row.module: row.shape(self) for row in self.family.parameters if row.matmul and row.in_layers}


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
