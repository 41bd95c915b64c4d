"""Gemma 2.

Sources: google/gemma-2-2b, -9b, -27b.
"""

from __future__ import annotations

import dataclasses

from lcjax.config.model import LlamaConfig

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
}
