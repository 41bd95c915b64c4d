"""Qwen2, Qwen2.5 (whose files say qwen2) and Qwen3: dense models.

Qwen2 has biases of queries, keys and values. Qwen3 normalizes queries and keys instead.

Source: transformers 5, `models/qwen2/configuration_qwen2.py` and `models/qwen3`; llama.cpp,
`gguf-py/gguf/constants.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcjax.config.families import windows
from lcjax.config.families.decoder import OF_A_HEAD, always, decoder_parameters
from lcjax.config.families.family import AttentionView, Family

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

_KEYS = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "sliding_window": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
}
_OWN_KEYS = {"use_sliding_window": False, "max_window_layers": 28, "layer_types": None}


def _kinds(config: LlamaConfig) -> tuple[str, ...]:
    """What each layer sees. Without `layer_types`, the first layers see all tokens."""
    if (given := config.own_value("layer_types")) is not None:
        return given
    has_window = config.own_value("use_sliding_window") and config.sliding_window is not None
    first = config.own_value("max_window_layers") if has_window else config.num_hidden_layers
    return tuple(windows.WINDOW if layer >= first else windows.FULL for layer in range(config.num_hidden_layers))


def _refusal(config: LlamaConfig) -> str | None:
    first = config.own_value("max_window_layers")
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        return f"max_window_layers={first!r} is not a number of layers"
    return windows.switched_refusal(config, _kinds(config))


def _window(config: LlamaConfig, layer: int) -> int | None:
    return windows.window(config, _kinds(config)[layer])


QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    gguf_architecture="qwen2",
    keys={**_KEYS, "head_dim": None},
    own_keys=_OWN_KEYS,
    parameters=decoder_parameters(qkv_bias=always),
    sees=lambda config, layer: AttentionView(window=_window(config, layer)),
    refusal=_refusal,
)

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    gguf_architecture="qwen3",
    keys={**_KEYS, "head_dim": 128, "attention_bias": False},
    own_keys=_OWN_KEYS,
    parameters=decoder_parameters(
        qkv_bias=lambda config: config.attention_bias,
        output_bias=lambda config: config.attention_bias,
        qk_norm=OF_A_HEAD,
    ),
    sees=lambda config, layer: AttentionView(window=_window(config, layer)),
    refusal=_refusal,
    gguf_refusal=lambda config: "attention_bias=true" if config.attention_bias else None,
)
