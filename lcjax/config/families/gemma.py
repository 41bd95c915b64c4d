"""Gemma 2: norms before and after attention and the MLP, soft caps, windows in some layers.

Source: transformers 5, `models/gemma2/configuration_gemma2.py` and `modeling_gemma2.py`; llama.cpp,
`gguf-py/gguf/constants.py`, `conversion/gemma.py` and `src/models/gemma2.cpp`; Gemma 2, arXiv
2408.00118.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lcjax.config.families import windows
from lcjax.config.families.decoder import decoder_parameters
from lcjax.config.families.family import AttentionView, Family, Norms

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
    if (both := config.own_value("use_bidirectional_attention")) not in (None, False):
        return f"use_bidirectional_attention={both!r} is not supported"
    if not _is_positive(scalar := config.own_value("query_pre_attn_scalar")):
        return f"query_pre_attn_scalar={scalar!r} is not a positive number"
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := config.own_value(key)) is not None and not _is_positive(cap):
            return f"{key}={cap!r} is not a positive number, or null"
    return windows.refusal(config, _kinds(config))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _gguf_derived(config: LlamaConfig) -> dict[str, Any]:
    """llama.cpp recognizes the largest model by its number of layers."""
    of_heads = config.hidden_size // config.num_attention_heads
    return {"query_pre_attn_scalar": of_heads if config.num_hidden_layers == 46 else config.head_dim}


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
