"""What a model and an adapter are, before any array exists: frozen, validated, hashable."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from lcjax.errors import InputError
from lcjax.rope_scaling import UNSCALED, read_rope
from lcjax.rope_scaling import RopeScaling as RopeScaling

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama-family decoder, in config.json's names.

    Sizes are element counts, `max_position_embeddings` is in tokens. `head_dim` need not be
    `hidden_size / num_attention_heads`. RoPE turns the first `partial_rotary_factor` of a head's dimensions.

    Raises:
      InputError: a size is not positive, the head counts do not divide, head_dim is odd, or RoPE does not fit it.
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

    def __post_init__(self):
        for field in (
            "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
            "head_dim max_position_embeddings"
        ).split():
            value = getattr(self, field)
            if not isinstance(value, int) or value <= 0:
                raise InputError(f"{field}={value!r} in the model's config must be a positive integer")
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"num_attention_heads={self.num_attention_heads} in the model's config is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise InputError(f"head_dim={self.head_dim} in the model's config must be even: RoPE rotates pairs")
        if not 0.0 < self.partial_rotary_factor <= 1.0 or self.rotary_dim < 1:
            raise InputError(
                f"partial_rotary_factor={self.partial_rotary_factor} in the model's config must be above 0 and at most 1, and "
                f"leave something of head_dim={self.head_dim} to rotate"
            )
        for name in ("short_factor", "long_factor") if self.rope_scaling.rope_type == "longrope" else ():
            if (count := len(getattr(self.rope_scaling, name))) != (pairs := (self.rotary_dim + 1) // 2):
                raise InputError(f"{name} in the model's config has {count} numbers for {pairs} rotated pairs")

    @classmethod
    def from_dict(cls, config: dict[str, Any], *, source: str = "config.json") -> LlamaConfig:
        """Reads the dictionary of a Hugging Face config.json, filling gaps as transformers' LlamaConfig does.

        Args:
          config: the parsed config.json; `rope_scaling` (old) and `rope_parameters` (new) spellings are both read.
          source: what to call the dictionary in an error.

        Raises:
          InputError: another architecture, a missing required key, or an option that would change the result and is
            not implemented.
        """
        _refuse_what_is_not_llama(config, source)
        required = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads".split()
        missing = [key for key in required if config.get(key) is None]
        if missing:
            raise InputError(f"{source} lacks {', '.join(missing)}; is it a complete Llama config.json?")
        heads = config["num_attention_heads"]
        optional = {
            key: config[key]
            for key in "max_position_embeddings rms_norm_eps tie_word_embeddings attention_bias mlp_bias bos_token_id".split()
            if config.get(key) is not None
        }
        eos = config.get("eos_token_id")
        context = optional.get("max_position_embeddings", cls.max_position_embeddings)
        theta, rotated, scaling = read_rope(config, context, source)
        return cls(
            **{key: config[key] for key in required},
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // max(heads, 1),
            rope_theta=theta,
            rope_scaling=scaling,
            partial_rotary_factor=rotated,
            eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
            **optional,
        )

    @classmethod
    def from_json(cls, path: Path) -> LlamaConfig:
        """Reads a config.json file; see `from_dict`."""
        try:
            parsed = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path} does not exist; a model directory needs a config.json") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not valid JSON ({error}); download the model again") from None
        if not isinstance(parsed, dict):
            raise InputError(f"{path} holds a {type(parsed).__name__}, not an object; download the model again")
        return cls.from_dict(parsed, source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The config.json that transformers (4 and 5) reads back into the same model."""
        config = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "rope_scaling" and getattr(self, field.name) is not None
        }
        if isinstance(self.eos_token_id, tuple):
            config["eos_token_id"] = list(self.eos_token_id)
        config["rope_scaling"] = self.rope_scaling.to_dict()
        if self.partial_rotary_factor == 1.0:
            del config["partial_rotary_factor"]  # which no Llama of transformers has
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", **config}

    @property
    def rotary_dim(self) -> int:
        """How many of a head's dimensions RoPE turns, in pairs."""
        return int(self.head_dim * self.partial_rotary_factor)

    def with_rope_of(self, other: LlamaConfig) -> LlamaConfig:
        """This model with the RoPE and the context of another."""
        names = "rope_theta", "rope_scaling", "partial_rotary_factor", "max_position_embeddings"
        return dataclasses.replace(self, **{name: getattr(other, name) for name in names})

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out_features, in_features) of each of a layer's seven linear maps, by module name."""
        query, key_value = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        hidden, intermediate = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (query, hidden),
            "k_proj": (key_value, hidden),
            "v_proj": (key_value, hidden),
            "o_proj": (hidden, query),
            "gate_proj": (intermediate, hidden),
            "up_proj": (intermediate, hidden),
            "down_proj": (hidden, intermediate),
        }

    def has_bias(self, module: str) -> bool:
        """Whether the named linear map of a layer adds a bias."""
        return self.mlp_bias if module in ("gate_proj", "up_proj", "down_proj") else self.attention_bias


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """A low-rank adapter: `y = W x + scaling * B (A x)`, with A of shape [r, in] and B of shape [out, r].

    Source: Hu et al., LoRA, arXiv 2106.09685; `use_rslora`: Kalajdzievski, arXiv 2312.03732.

    Raises:
      InputError: r, lora_alpha or lora_dropout is out of range, or a target module is unknown.
    """

    r: int = 16
    lora_alpha: float = 32
    target_modules: tuple[str, ...] = TARGET_MODULES
    use_rslora: bool = False
    lora_dropout: float = 0.0

    def __post_init__(self):
        if not isinstance(self.r, int) or self.r <= 0:
            raise InputError(f"r={self.r!r} must be a positive integer (the rank of the adapter)")
        if not self.lora_alpha > 0:
            raise InputError(f"lora_alpha={self.lora_alpha!r} must be positive")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise InputError(f"lora_dropout={self.lora_dropout!r} must be at least 0 and below 1")
        unknown = sorted(set(self.target_modules) - set(TARGET_MODULES))
        if unknown or not self.target_modules:
            named = f"target_modules={unknown}" if unknown else "an empty target_modules"
            raise InputError(f"{named} cannot be adapted; choose from {', '.join(TARGET_MODULES)}")
        # One order, so that equal sets compare and hash equal.
        object.__setattr__(self, "target_modules", tuple(m for m in TARGET_MODULES if m in self.target_modules))

    @property
    def scaling(self) -> float:
        """The factor on B A x: lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


def _refuse_what_is_not_llama(config: dict[str, Any], source: str) -> None:
    model_type = config.get("model_type", "llama")
    if model_type not in ("llama", "mistral"):
        raise InputError(f"{source} says model_type={model_type!r}; supported are llama and mistral")
    if config.get("sliding_window"):
        raise InputError(f"{source} says sliding_window={config['sliding_window']}; only full attention is supported")
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(f"{source} says hidden_act={config['hidden_act']!r}; only silu is supported")
    if config.get("quantization_config"):
        _refuse_what_is_not_nf4(config["quantization_config"], source)


def _refuse_what_is_not_nf4(quantization: dict[str, Any], source: str) -> None:
    """Of quantised checkpoints, bitsandbytes' NF4 is read (see `lcjax.weights.bnb`)."""
    method = quantization.get("quant_method", "?")
    if method != "bitsandbytes":
        raise InputError(f"{source} says the weights are quantised ({method}); use an unquantised checkpoint")
    expected = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "uint8"}
    for key, value in expected.items():
        if (found := quantization.get(key, value)) != value:
            raise InputError(
                f"{source} says {key}={found}, and only {value} is supported; use an unquantised checkpoint"
            )
