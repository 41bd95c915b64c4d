"""GGUF's metadata as a LlamaConfig."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from lcjax.config import LlamaConfig, RopeScaling
from lcjax.config.families import FAMILIES, Family
from lcjax.config.rope import factor_of
from lcjax.errors import InputError
from lcjax.weights.gguf.file import REMEDY, GgufFile

ROPE_FACTORS = "rope_freqs.weight"
LONGROPE = "rope_factors_short.weight", "rope_factors_long.weight"
"""The tensors of longrope's divisors."""
WINDOW = "attention.sliding_window"
_EXPERTS = "expert_count"

# llama.cpp reads these keys for a few architectures only; for the others it has these values.
YARN_BETAS = {"rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0}


def gguf_config(file: GgufFile) -> LlamaConfig:
    """The config that the metadata and the presence of tensors (`output.weight`, biases) describe.

    Raises:
      InputError: the architecture is not supported; the file is one part of a split model; a key is
        missing; or an option is set that would change the result and is not implemented.
    """
    family = _family(file)
    metadata = _Metadata(file, family)
    heads, hidden = metadata.integer("attention.head_count"), metadata.integer("embedding_length")
    head_dim = metadata.integer("attention.key_length", default=hidden // heads)
    rotated = metadata.integer("rope.dimension_count", default=head_dim)
    for key in ("attention.value_length", *(() if family.gguf_longrope else ("rope.dimension_count",))):
        if (found := metadata.integer(key, default=head_dim)) != head_dim:
            raise InputError(
                f"{file.path} says {metadata.prefix}.{key}={found}, but heads have {head_dim}; "
                "only equal sizes are supported: load the model from Hugging Face's format instead"
            )
    layers = metadata.integer("block_count")
    # With a corrupt count, the list of missing names could have billions of entries.
    if layers > len(file.tensors):
        raise InputError(
            f"{file.path} says {metadata.prefix}.block_count={layers} and has {len(file.tensors)} tensors; {REMEDY}"
        )
    theta = metadata.decimal("rope.freq_base", default=10_000.0)
    fields: dict[str, Any] = dict(
        vocab_size=metadata.integer("vocab_size", default=len(file.metadata.get("tokenizer.ggml.tokens", ()))),
        hidden_size=hidden,
        intermediate_size=metadata.integer("feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=metadata.integer("attention.head_count_kv", default=heads),
        head_dim=head_dim,
        max_position_embeddings=metadata.integer("context_length"),
        rms_norm_eps=metadata.decimal("attention.layer_norm_rms_epsilon"),
        rope_theta=theta,
        rope_scaling=(_longrope(file, metadata, rotated) if family.gguf_longrope else None)
        or _rope_scaling(file, metadata, theta, head_dim),
        partial_rotary_factor=rotated / head_dim,
        tie_word_embeddings="output.weight" not in file.tensors,
        attention_bias="attention_bias" in family.keys and "blk.0.attn_q.bias" in file.tensors,
        mlp_bias="mlp_bias" in family.keys and "blk.0.ffn_up.bias" in file.tensors,
        bos_token_id=file.metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=file.metadata.get("tokenizer.ggml.eos_token_id"),
        model_type=family.model_type,
    )
    config = LlamaConfig(**fields | _own_fields(metadata, family))
    derived = tuple(family.gguf_derived(config).items())
    return dataclasses.replace(config, own_values=(*config.own_values, *derived))


def _own_fields(metadata: _Metadata, family: Family) -> dict[str, Any]:
    """The fields of LlamaConfig from the keys that only some families have."""
    # llama.cpp has no defaults for the numbers of experts.
    found = {
        key: metadata.integer(key) if key.startswith("expert_") else metadata.plain(key) for key in family.gguf_keys
    }
    # llama.cpp's converter writes 0 for no window.
    is_none = [key for key, value in found.items() if value is None or (key == WINDOW and value == 0)]
    found = {name: found[key] for key, name in family.gguf_keys.items() if key not in is_none}
    fields = {field.name for field in dataclasses.fields(LlamaConfig)}
    own = tuple((name, value) for name, value in found.items() if name not in fields)
    return {"own_values": own, **{name: value for name, value in found.items() if name in fields}}


def _family(file: GgufFile) -> Family:
    families: dict[str, Family] = {}
    for family in FAMILIES.values():
        if family.gguf_architecture:
            families.setdefault(family.gguf_architecture, family)
    architecture = file.metadata.get("general.architecture")
    if architecture not in families:
        raise InputError(
            f"{file.path} says general.architecture={architecture!r}; supported are {', '.join(families)}: "
            "use a model of these families"
        )
    return families[architecture]


class _Metadata:
    """Checked values of the keys that begin with the architecture, such as `llama.block_count`."""

    def __init__(self, file: GgufFile, family: Family):
        self.file, self.family = file, family
        self.prefix = family.gguf_architecture
        if (parts := file.metadata.get("split.count", 1)) > 1:
            raise InputError(
                f"{file.path} is one of {parts} parts; join them with llama.cpp's llama-gguf-split --merge"
            )
        experts = file.metadata.get(f"{self.prefix}.{_EXPERTS}")
        if experts and _EXPERTS not in family.gguf_keys:
            with_experts = ", ".join(
                str(other.gguf_architecture) for other in FAMILIES.values() if _EXPERTS in other.gguf_keys
            )
            raise InputError(
                f"{file.path} says {self.prefix}.{_EXPERTS}={experts}; mixtures of experts are supported in files of "
                f"{with_experts} only: use another model"
            )

    def value(self, key: str, kind: type, default: Any) -> Any:
        key = f"{self.prefix}.{key}"
        found = self.file.metadata.get(key, default)
        if found is None:
            raise InputError(f"{self.file.path} lacks the metadata key {key}; convert the model to GGUF again")
        if not isinstance(found, kind) or isinstance(found, bool) or found <= 0:
            wanted = "positive integer" if kind is int else "positive number"
            raise InputError(
                f"{self.file.path} says {key}={found!r}; it must be a {wanted}: convert the model to GGUF again"
            )
        return found

    def integer(self, key: str, default: int | None = None) -> int:
        return self.value(key, int, default)

    def plain(self, key: str) -> Any:
        """A value of any type; None if the file lacks the key. A list becomes a tuple."""
        found = self.file.metadata.get(f"{self.prefix}.{key}")
        if isinstance(found, list):
            return tuple(found)
        return _shortest(found) if isinstance(found, float) else found

    def decimal(self, key: str, default: float | None = None) -> float:
        return _shortest(self.value(key, float, default))


def _shortest(stored: float) -> float:
    """The shortest decimal that rounds to a float32.

    That is the intended value: 1e-05, not 9.99999975e-06.
    """
    return float(str(np.float32(stored)))


def _rope_scaling(file: GgufFile, metadata: _Metadata, theta: float, head_dim: int) -> RopeScaling:
    key = f"{metadata.prefix}.rope.scaling.type"
    scaling_type = file.metadata.get(key, "none")
    if scaling_type not in ("none", "linear", "yarn"):
        raise InputError(
            f"{file.path} says {key}={scaling_type!r}; only none, linear, yarn and Llama 3's scaling are supported: "
            "load the model from Hugging Face's format instead"
        )
    if scaling_type != "none" and ROPE_FACTORS in file.tensors:
        raise InputError(
            f"{file.path} says {key}={scaling_type!r} and has {ROPE_FACTORS}; only one is supported: convert the model "
            "to GGUF again"
        )
    if scaling_type == "linear":
        return RopeScaling("linear", metadata.decimal("rope.scaling.factor"))
    if scaling_type == "yarn":
        return _yarn(metadata)
    if ROPE_FACTORS not in file.tensors:
        return RopeScaling()
    factors = _read_factors(file, ROPE_FACTORS, head_dim // 2)
    # The file stores the result of the scheme, a divisor per frequency, and not its parameters.
    # Every released Llama 3.x uses the same parameters except for the factor, which is the divisor
    # of the lowest frequencies.
    scaling = RopeScaling(
        rope_type="llama3",
        factor=_shortest(factors[-1]),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=metadata.integer("rope.scaling.original_context_length", default=8192),
    )
    # Only float32 rounding may differ: parameters that are off by 1% change a divisor by about
    # 0.1%.
    if not np.allclose(factors, llama3_factors(scaling, theta, head_dim), rtol=1e-5, atol=0.0):
        raise InputError(
            f"{file.path}: {ROPE_FACTORS} is not Llama 3's RoPE scaling with low_freq_factor=1, "
            f"high_freq_factor=4 and {scaling.original_max_position_embeddings} positions; load "
            "the model from Hugging Face's format instead"
        )
    return scaling


def _yarn(metadata: _Metadata) -> RopeScaling:
    """YaRN as llama.cpp applies it, with `attn_factor` times the attention factor of the paper."""
    for key, value in YARN_BETAS.items():
        if (found := metadata.decimal(key, default=value)) != value:
            raise InputError(
                f"{metadata.file.path} says {metadata.prefix}.{key}={found}; llama.cpp's {value} is supported: load "
                "the model from Hugging Face's format instead"
            )
    factor = metadata.decimal("rope.scaling.factor")
    scaling = RopeScaling(
        "yarn",
        factor,
        original_max_position_embeddings=metadata.integer(
            "rope.scaling.original_context_length", default=metadata.integer("context_length")
        ),
        truncate=metadata.family.gguf_yarn_truncates,
    )
    times = metadata.decimal("rope.scaling.attn_factor", default=1.0)
    if times == 1.0:
        return scaling
    usual = 0.1 * math.log(factor) + 1.0
    # The intended value is the one with few digits, if the file's rounded quotient allows it.
    rounded = float(f"{times * usual:.6g}")
    is_intended = np.float32(rounded / usual) == np.float32(times)
    return dataclasses.replace(scaling, attention_factor=rounded if is_intended else _shortest(times * usual))


def rope_tensors(family: Family) -> set[str]:
    """The tensors of RoPE, which are not parameters, that files of a family may have."""
    return {ROPE_FACTORS, *(LONGROPE if family.gguf_longrope else ())}


def _longrope(file: GgufFile, metadata: _Metadata, rotated: int) -> RopeScaling | None:
    """The scaling of a file with two lists of divisors; None for other files."""
    if not file.tensors.keys() & set(LONGROPE):
        return None
    if missing := [name for name in LONGROPE if name not in file.tensors]:
        raise InputError(f"{file.path} lacks {missing[0]}; convert the model to GGUF again")
    context = metadata.integer("context_length")
    original = metadata.integer("rope.scaling.original_context_length", default=context)
    short, long = (tuple(map(_shortest, _read_factors(file, name, rotated // 2))) for name in LONGROPE)
    scaling = RopeScaling(
        "longrope",
        context / original,
        original_max_position_embeddings=original,
        short_factor=short,
        long_factor=long,
    )
    # llama.cpp does not compute the attention factor of this kind.
    stored = metadata.decimal("rope.scaling.attn_factor", default=1.0)
    if np.float32(stored) == np.float32(factor_of(scaling)):
        return scaling
    return dataclasses.replace(scaling, attention_factor=stored)


def _read_factors(file: GgufFile, name: str, pairs: int) -> np.ndarray:
    tensor = file.tensors[name]
    if tensor.type.name != "F32" or tensor.shape != (pairs,):
        raise InputError(
            f"{file.path}: {name} is {tensor.type.name} {list(tensor.shape)}, not F32 [{pairs}]; "
            "convert the model to GGUF again"
        )
    with file.path.open("rb") as stream:
        stream.seek(tensor.offset)
        return np.frombuffer(stream.read(tensor.num_bytes), "<f4")


def llama3_factors(scaling: RopeScaling, theta: float, head_dim: int) -> np.ndarray:
    """The output of llama.cpp's converter: a divisor for each of head_dim / 2 frequencies.

    The highest frequency comes first.
    """
    wavelengths = 2.0 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = scaling.original_max_position_embeddings / wavelengths
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / scaling.factor + smooth)
