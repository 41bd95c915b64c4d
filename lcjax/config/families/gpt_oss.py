"""The attention of gpt-oss: sinks, biases, and a window in every other layer.

Source: transformers 5, `models/gpt_oss/configuration_gpt_oss.py`; OpenAI, gpt-oss model card,
arXiv 2508.10925.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lcjax.config.families import windows
from lcjax.config.families.family import AttentionView, Norms

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

KEYS = {
    "vocab_size": 201_088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150_000.0,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "sliding_window": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}
OWN_KEYS = {"layer_types": None}
NORMS = Norms(in_float32=True)
"""Those of Llama, rounded after the product with their weights."""

ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""The scaling of RoPE if config.json has none."""


def flattened(config: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """config.json with the default scaling of RoPE if it has none."""
    if config.get("rope_scaling") or config.get("rope_parameters"):
        return config
    return {**config, "rope_parameters": ROPE}


def has_bias(config: LlamaConfig) -> bool:
    """Whether the four linear maps of attention have biases."""
    return config.attention_bias


def sees(config: LlamaConfig, layer: int) -> AttentionView:
    """Without `layer_types`, the first layer and every second one after it have a window."""
    return AttentionView(window=windows.window(config, _kinds(config)[layer]))


def refusal(config: LlamaConfig) -> str | None:
    return windows.refusal(config, _kinds(config))


def _kinds(config: LlamaConfig) -> tuple[str, ...]:
    if (given := config.own_value("layer_types")) is not None:
        return given
    return tuple(windows.FULL if layer % 2 else windows.WINDOW for layer in range(config.num_hidden_layers))
