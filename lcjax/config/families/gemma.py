"""Gemma 2 and 3: norms before and after attention and the MLP, and windows in some layers.

Gemma 2 has soft caps. Gemma 3 normalizes queries and keys instead, and its layers with a window
have a RoPE of their own.

Source: transformers 5, `configuration_gemma2.py`, `modeling_gemma2.py`, `configuration_gemma3.py`
and `modeling_gemma3.py`; llama.cpp, `gguf-py/gguf/constants.py`, `conversion/gemma.py`,
`src/models/gemma2.cpp` and `gemma3.cpp`; Gemma 2, arXiv 2408.00118; Gemma 3, arXiv 2503.19786.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lcjax.config.families import windows
from lcjax.config.families.family import AttentionView, Composite, Family, Rotary
from lcjax.config.families.parameters.decoder import OF_A_HEAD, decoder_parameters
from lcjax.config.families.parameters.norms import Norms
from lcjax.errors import InputError

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

_NORMS = Norms(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
    offset=1.0,
    in_float32=True,
)
_KEYS = {
    "vocab_size": 256_000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "sliding_window": 4096,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_OWN_KEYS = {
    "query_pre_attn_scalar": 256,
    "layer_types": None,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "use_bidirectional_attention": None,
}


def _kinds(config: LlamaConfig) -> tuple[str, ...]:
    """What each layer sees. Without `layer_types`, every other layer has a window."""
    if (given := config.own_value("layer_types")) is not None:
        return given
    return _alternating(config)


def _alternating(config: LlamaConfig) -> tuple[str, ...]:
    return tuple(windows.FULL if layer % 2 else windows.WINDOW for layer in range(config.num_hidden_layers))


def _sees(config: LlamaConfig, layer: int) -> AttentionView:
    return AttentionView(
        window=windows.window(config, _kinds(config)[layer]),
        soft_cap=config.own_value("attn_logit_softcapping"),
        scale=config.own_value("query_pre_attn_scalar") ** -0.5,
    )


def _refusal(config: LlamaConfig) -> str | None:
    return _refusal_of_values(config) or windows.refusal(config, _kinds(config))


def _refusal_of_values(config: LlamaConfig) -> str | None:
    if (both := config.own_value("use_bidirectional_attention")) not in (None, False):
        return f"use_bidirectional_attention={both!r} is not supported"
    if not _is_positive(scalar := config.own_value("query_pre_attn_scalar")):
        return f"query_pre_attn_scalar={scalar!r} is not a positive number"
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := config.own_value(key)) is not None and not _is_positive(cap):
            return f"{key}={cap!r} is not a positive number, or null"
    return None


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _gguf_derived(config: LlamaConfig) -> dict[str, Any]:
    """llama.cpp recognizes the largest model of each family by its number of layers."""
    is_largest = config.num_hidden_layers == {"gemma2": 46, "gemma3_text": 62}[config.model_type]
    return {
        "query_pre_attn_scalar": config.hidden_size // config.num_attention_heads if is_largest else config.head_dim
    }


def _gguf_refusal(config: LlamaConfig) -> str | None:
    if config.attention_bias or not config.tie_word_embeddings:
        return "attention_bias=true" if config.attention_bias else "tie_word_embeddings=false"
    if _kinds(config) != _alternating(config):
        return "layer_types other than alternating ones"
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    return next((f"{key}=null" for key in caps if config.own_value(key) is None), None)


def _bias(config: LlamaConfig) -> bool:
    return config.attention_bias


GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    gguf_architecture="gemma2",
    gguf_keys={
        "attention.sliding_window": "sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    gguf_derived=_gguf_derived,
    gguf_refusal=_gguf_refusal,
    keys=_KEYS,
    own_keys=_OWN_KEYS,
    parameters=decoder_parameters(qkv_bias=_bias, output_bias=_bias, norms=_NORMS),
    norms=_NORMS,
    activation="gelu_pytorch_tanh",
    activation_key="hidden_activation",
    embedding_scale=lambda config: config.hidden_size**0.5,
    logit_cap=lambda config: config.own_value("final_logit_softcapping"),
    sees=_sees,
    refusal=_refusal,
)


def _kinds_3(config: LlamaConfig) -> tuple[str, ...]:
    """What each layer sees. Without `layer_types`, every sixth layer sees all tokens."""
    return given if (given := config.own_value("layer_types")) is not None else _by_pattern(config)


def _by_pattern(config: LlamaConfig) -> tuple[str, ...]:
    every = config.own_value("sliding_window_pattern")
    return tuple(windows.WINDOW if layer % every else windows.FULL for layer in range(1, config.num_hidden_layers + 1))


def _sees_3(config: LlamaConfig, layer: int) -> AttentionView:
    window = windows.window(config, _kinds_3(config)[layer])
    rotary = Rotary() if window is None else Rotary(theta=config.own_value("rope_local_base_freq"))
    return AttentionView(window=window, scale=config.own_value("query_pre_attn_scalar") ** -0.5, rotary=rotary)


def _refusal_3(config: LlamaConfig) -> str | None:
    if (cap := config.own_value("attn_logit_softcapping")) is not None:
        return f"attn_logit_softcapping={cap!r} is not supported (transformers ignores it)"
    every, theta = config.own_value("sliding_window_pattern"), config.own_value("rope_local_base_freq")
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        return f"sliding_window_pattern={every!r} is not a number of layers"
    if not _is_positive(theta) or theta <= 1:
        return f"rope_local_base_freq={theta!r} is not a number above 1"
    return _refusal_of_values(config) or windows.refusal(config, _kinds_3(config))


def _gguf_refusal_3(config: LlamaConfig) -> str | None:
    if config.attention_bias:
        return "attention_bias=true"
    if _kinds_3(config) != _by_pattern(config):
        return "layer_types other than sliding_window_pattern says"
    if (cap := config.own_value("final_logit_softcapping")) is not None:
        return f"final_logit_softcapping={cap}"
    kind = config.rope_scaling.rope_type
    return None if kind in ("default", "linear") else f"rope_type={kind}"


def _flattened_3(config: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """RoPE under the keys of transformers 4. Version 5 has an object for each kind of layers."""
    rope, scaling = config.get("rope_parameters"), config.get("rope_scaling") or {}
    if rope is None or not isinstance(scaling, Mapping):
        return config
    kinds = windows.FULL, windows.WINDOW
    parts = [rope.get(kind) or {} for kind in kinds] if isinstance(rope, Mapping) and not rope.keys() - {*kinds} else []
    if not parts or not all(isinstance(part, Mapping) for part in parts):
        raise InputError(
            f"{source} has {rope!r} for RoPE's parameters; it must be an object with {' and '.join(kinds)}"
        )
    whole, local = parts
    if (kind := local.get("rope_type", "default")) != "default":
        raise InputError(f"{source} says rope_type={kind!r} for {windows.WINDOW}; only default is supported")
    return {
        **config,
        "rope_scaling": None,
        "rope_parameters": {**whole, **scaling},
        "rope_local_base_freq": local.get("rope_theta", config.get("rope_local_base_freq", 10_000.0)),
    }


GEMMA3_TEXT = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    composite=Composite(
        model_type="gemma3",
        prefixes={
            "language_model.model.": "model.",
            "language_model.lm_head.": "lm_head.",
            "model.language_model.": "model.",
        },
        others=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
    ),
    flattened=_flattened_3,
    gguf_architecture="gemma3",
    gguf_keys={
        "attention.sliding_window": "sliding_window",
        "attention.sliding_window_pattern": "sliding_window_pattern",
        "rope.freq_base_swa": "rope_local_base_freq",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    gguf_derived=_gguf_derived,
    gguf_refusal=_gguf_refusal_3,
    keys={**_KEYS, "vocab_size": 262_208, "max_position_embeddings": 131_072, "rope_theta": 1_000_000.0},
    own_keys={
        **_OWN_KEYS,
        "sliding_window_pattern": 6,
        "rope_local_base_freq": 10_000.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
    parameters=decoder_parameters(qkv_bias=_bias, output_bias=_bias, norms=_NORMS, qk_norm=OF_A_HEAD),
    norms=_NORMS,
    activation=GEMMA2.activation,
    activation_key=GEMMA2.activation_key,
    embedding_scale=GEMMA2.embedding_scale,
    logit_cap=GEMMA2.logit_cap,
    sees=_sees_3,
    refusal=_refusal_3,
)
