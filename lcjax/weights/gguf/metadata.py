"""A LlamaConfig as GGUF's metadata: the inverse of `lcjax.weights.gguf.config`.

Source of the keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and llama.cpp,
src/llama-model.cpp.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gguf.constants import RopeScalingType
from gguf.gguf_writer import GGUFWriter

from lcjax.config import LlamaConfig
from lcjax.config.families import FAMILIES
from lcjax.config.rope import attention_factor
from lcjax.errors import InputError
from lcjax.weights.gguf.config import LONGROPE, ROPE_FACTORS, WINDOW, YARN_BETAS, llama3_factors

SOFT_CAP, SCALE = "attn_logit_softcapping", "attention.scale"
_INSTEAD = "write a Hugging Face directory instead"


def check_expressible(config: LlamaConfig) -> None:
    """Raises InputError, with the option's name, if GGUF has no place for a part of the model."""
    family = config.family
    if family.gguf_architecture is None:
        written = sorted(name for name, other in FAMILIES.items() if other.gguf_architecture)
        raise InputError(
            f"a GGUF file of {config.model_type} models cannot be written, only of {', '.join(written)}; {_INSTEAD}"
        )
    refusals = (family.gguf_refusal(config), _of_derived(config), _of_attention(config), _of_rope(config))
    if (refusal := next(filter(None, refusals), None)) is not None:
        raise InputError(f"GGUF files of {family.gguf_architecture} models cannot express {refusal}; {_INSTEAD}")


def add_config(writer: GGUFWriter, config: LlamaConfig) -> None:
    """Adds the keys that llama.cpp needs, and those of the family.

    Raises:
      InputError: of `check_expressible`.
    """
    check_expressible(config)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    _add_rope_scaling(writer, config)
    for key, name in config.family.gguf_keys.items():
        # RoPE's own numbers have been added.
        if (full := f"{writer.arch}.{key}") not in writer.kv_data[0]:
            _add(writer, full, _value(config, key, name))


def rope_factors(config: LlamaConfig) -> dict[str, np.ndarray]:
    """The divisors of RoPE's frequencies by the names of their tensors, float32 [rotary_dim / 2].

    There are none for most kinds of RoPE.
    """
    scaling = config.rope_scaling
    if scaling.rope_type == "llama3":
        return {ROPE_FACTORS: llama3_factors(scaling, config.rope_theta, config.head_dim).astype(np.float32)}
    if scaling.rope_type == "longrope":
        lists = scaling.short_factor, scaling.long_factor
        return {name: np.array(values, np.float32) for name, values in zip(LONGROPE, lists, strict=True)}
    return {}


def _value(config: LlamaConfig, key: str, name: str) -> Any:
    value = getattr(config, name) if hasattr(config, name) else config.own_value(name)
    # llama.cpp refuses a file of Phi-3 without the key, and takes 0 for no window.
    return 0 if key == WINDOW and value is None else value


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    """Adds a value with the type that llama.cpp expects for its Python type."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, tuple):
        writer.add_array(key, value)
    else:
        assert value is None, f"{key}={value!r} has no type in GGUF"


def _of_derived(config: LlamaConfig) -> str | None:
    """A value that is not the one that llama.cpp derives."""
    for name, value in config.family.gguf_derived(config).items():
        if config.own_value(name) != value:
            return f"{name}={config.own_value(name)} instead of {value}"
    return None


def _of_attention(config: LlamaConfig) -> str | None:
    """What the format cannot express of attention.

    A window over the whole context has no effect and needs no place.
    """
    keys, derives = config.family.gguf_keys, config.family.gguf_derived(config)
    for view in config.views:
        if view.window is not None and view.window < config.max_position_embeddings and WINDOW not in keys:
            return f"sliding_window={view.window} (set it to null in config.json if every token may see all before it)"
        if view.soft_cap is not None and SOFT_CAP not in keys:
            return f"{SOFT_CAP}={view.soft_cap}"
        is_usual = view.scale is None or math.isclose(view.scale, config.head_dim**-0.5)
        if not is_usual and SCALE not in keys and not derives:
            return f"scores with the factor {view.scale:.6g} instead of 1 / sqrt(head_dim)"
    return None


def _of_rope(config: LlamaConfig) -> str | None:
    scaling = config.rope_scaling
    if config.rotary_dim != config.head_dim and not config.family.gguf_longrope:
        return f"partial_rotary_factor={config.partial_rotary_factor}"
    if scaling.rope_type == "dynamic" or (scaling.rope_type == "longrope" and not config.family.gguf_longrope):
        return f"rope_type={scaling.rope_type}"
    if scaling.rope_type == "llama3" and not config.family.gguf_rope_factors:
        return "rope_type=llama3"
    if scaling.rope_type != "yarn":
        return None
    betas = {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    for (name, found), expected in zip(betas.items(), YARN_BETAS.values(), strict=True):
        if found != expected:
            return f"YaRN with {name}={found} instead of {expected}"
    expected = config.family.gguf_yarn_truncates
    return None if scaling.truncate is expected else f"YaRN with truncate={str(not expected).lower()}"


def _add_rope_scaling(writer: GGUFWriter, config: LlamaConfig) -> None:
    scaling = config.rope_scaling
    if scaling.rope_type == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
    elif scaling.rope_type == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)
        # llama.cpp computes the paper's attention factor itself.
        times = attention_factor(config) / (0.1 * math.log(scaling.factor) + 1.0)
        if np.float32(times) != 1.0:
            writer.add_rope_scaling_attn_factors(times)
    elif scaling.rope_type == "longrope":
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)
        writer.add_rope_scaling_attn_factors(attention_factor(config))
    elif scaling.rope_type == "llama3":
        # llama.cpp does not need it, because the factors contain it; our reader does.
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)
