"""Llama, SmolLM2 and TinyLlama.

Sources: meta-llama/Llama-3.1-8B, -70B, -405B, Llama-3.2-1B, -3B, Llama-3.3-70B-Instruct;
HuggingFaceTB/SmolLM2-135M; TinyLlama/TinyLlama_v1.1.
"""

from __future__ import annotations

import dataclasses

from lcjax.config.model import LlamaConfig
from lcjax.config.rope import RopeScaling

_LLAMA_3_1_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=131_072,
    rms_norm_eps=1e-5,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    ),
    bos_token_id=128_000,
    eos_token_id=128_001,
)
_LLAMA_3_1_70B = dataclasses.replace(
    _LLAMA_3_1_8B, hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80, num_attention_heads=64
)
_LLAMA_3_2_1B = dataclasses.replace(
    _LLAMA_3_1_8B,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    head_dim=64,
    rope_scaling=dataclasses.replace(_LLAMA_3_1_8B.rope_scaling, factor=32.0),
    tie_word_embeddings=True,
)

LLAMA: dict[str, LlamaConfig] = {
    "llama-3.1-8b": _LLAMA_3_1_8B,
    "llama-3.2-1b": _LLAMA_3_2_1B,
    "llama-3.2-3b": dataclasses.replace(
        _LLAMA_3_2_1B, hidden_size=3072, num_hidden_layers=28, num_attention_heads=24, head_dim=128
    ),
    "llama-3.1-70b": _LLAMA_3_1_70B,
    "llama-3.3-70b": dataclasses.replace(_LLAMA_3_1_70B, eos_token_id=(128_001, 128_008, 128_009)),
    "llama-3.1-405b": dataclasses.replace(
        _LLAMA_3_1_8B, hidden_size=16_384, intermediate_size=53_248, num_hidden_layers=126, num_attention_heads=128
    ),
    "smollm2-135m": LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100_000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "tinyllama-1.1b": LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
    ),
}
