"""Gemma 2 and the language models of Gemma 3.

Sources: google/gemma-2-2b, -9b, -27b; google/gemma-3-1b-pt, -4b-pt, -12b-pt, -27b-pt.
"""

from __future__ import annotations

import dataclasses

from lcjax.config.model import LlamaConfig
from lcjax.config.rope import UNSCALED, RopeScaling

_GEMMA_2_2B = LlamaConfig(
    vocab_size=256_000,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    max_position_embeddings=8192,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    bos_token_id=2,
    eos_token_id=1,
    sliding_window=4096,
    model_type="gemma2",
)
_GEMMA_3_4B = dataclasses.replace(
    _GEMMA_2_2B,
    vocab_size=262_208,
    hidden_size=2560,
    intermediate_size=10_240,
    num_hidden_layers=34,
    max_position_embeddings=131_072,
    rope_theta=1_000_000.0,
    rope_scaling=RopeScaling("linear", factor=8.0),
    sliding_window=1024,
    model_type="gemma3_text",
)

GEMMA: dict[str, LlamaConfig] = {
    "gemma-2-2b": _GEMMA_2_2B,
    "gemma-2-9b": dataclasses.replace(
        _GEMMA_2_2B,
        hidden_size=3584,
        intermediate_size=14_336,
        num_hidden_layers=42,
        num_attention_heads=16,
        num_key_value_heads=8,
    ),
    "gemma-2-27b": dataclasses.replace(
        _GEMMA_2_2B,
        hidden_size=4608,
        intermediate_size=36_864,
        num_hidden_layers=46,
        num_attention_heads=32,
        num_key_value_heads=16,
        head_dim=128,
        own_values=(("query_pre_attn_scalar", 144),),
    ),
    "gemma-3-1b": dataclasses.replace(
        _GEMMA_3_4B,
        vocab_size=262_144,
        hidden_size=1152,
        intermediate_size=6912,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=32_768,
        rope_scaling=UNSCALED,
        sliding_window=512,
    ),
    "gemma-3-4b": _GEMMA_3_4B,
    "gemma-3-12b": dataclasses.replace(
        _GEMMA_3_4B,
        hidden_size=3840,
        intermediate_size=15_360,
        num_hidden_layers=48,
        num_attention_heads=16,
        num_key_value_heads=8,
    ),
    "gemma-3-27b": dataclasses.replace(
        _GEMMA_3_4B,
        hidden_size=5376,
        intermediate_size=21_504,
        num_hidden_layers=62,
        num_attention_heads=32,
        num_key_value_heads=16,
        head_dim=128,
        own_values=(("query_pre_attn_scalar", 168),),
    ),
}
