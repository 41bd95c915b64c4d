"""Qwen2.5 and Qwen3.

Sources: Qwen/Qwen2.5-0.5B, -7B, -32B, -72B; Qwen/Qwen3-0.6B, -4B, -8B, -14B, -32B, -30B-A3B,
-235B-A22B.
"""

from __future__ import annotations

import dataclasses

from lcjax.config.model import LlamaConfig

_QWEN2_5_7B = LlamaConfig(
    vocab_size=152_064,
    hidden_size=3584,
    intermediate_size=18_944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    head_dim=128,
    max_position_embeddings=131_072,
    rms_norm_eps=1e-6,
    rope_theta=1_000_000.0,
    bos_token_id=151_643,
    eos_token_id=151_643,
    model_type="qwen2",
)
_QWEN2_5_72B = dataclasses.replace(
    _QWEN2_5_7B,
    hidden_size=8192,
    intermediate_size=29_568,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    rms_norm_eps=1e-5,
)
_QWEN3_8B = LlamaConfig(
    vocab_size=151_936,
    hidden_size=4096,
    intermediate_size=12_288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40_960,
    rms_norm_eps=1e-6,
    rope_theta=1_000_000.0,
    bos_token_id=151_643,
    eos_token_id=151_645,
    model_type="qwen3",
)
_QWEN3_30B_A3B = dataclasses.replace(
    _QWEN3_8B,
    hidden_size=2048,
    intermediate_size=6144,
    num_hidden_layers=48,
    num_key_value_heads=4,
    model_type="qwen3_moe",
    own_values=(
        ("num_experts", 128),
        ("num_experts_per_tok", 8),
        ("moe_intermediate_size", 768),
        ("norm_topk_prob", True),
    ),
)

QWEN: dict[str, LlamaConfig] = {
    "qwen2.5-0.5b": dataclasses.replace(
        _QWEN2_5_7B,
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
    ),
    "qwen2.5-7b": _QWEN2_5_7B,
    "qwen2.5-32b": dataclasses.replace(
        _QWEN2_5_72B, hidden_size=5120, intermediate_size=27_648, num_hidden_layers=64, num_attention_heads=40
    ),
    "qwen2.5-72b": _QWEN2_5_72B,
    "qwen3-0.6b": dataclasses.replace(
        _QWEN3_8B,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        tie_word_embeddings=True,
    ),
    "qwen3-4b": dataclasses.replace(_QWEN3_8B, hidden_size=2560, intermediate_size=9728, tie_word_embeddings=True),
    "qwen3-8b": _QWEN3_8B,
    "qwen3-14b": dataclasses.replace(
        _QWEN3_8B, hidden_size=5120, intermediate_size=17_408, num_hidden_layers=40, num_attention_heads=40
    ),
    "qwen3-32b": dataclasses.replace(
        _QWEN3_8B, hidden_size=5120, intermediate_size=25_600, num_hidden_layers=64, num_attention_heads=64
    ),
    "qwen3-30b-a3b": _QWEN3_30B_A3B,
    "qwen3-235b-a22b": dataclasses.replace(
        _QWEN3_30B_A3B,
        hidden_size=4096,
        intermediate_size=12_288,
        num_hidden_layers=94,
        num_attention_heads=64,
        own_values=(
            ("num_experts", 128),
            ("num_experts_per_tok", 8),
            ("moe_intermediate_size", 1536),
            ("norm_topk_prob", True),
        ),
    ),
}
