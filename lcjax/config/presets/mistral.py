"""Mistral.

Sources: mistralai/Mistral-7B-v0.1 (with a window of 4,096 tokens) and -v0.3 (with full attention).
"""

from __future__ import annotations

import dataclasses

from lcjax.config.model import LlamaConfig

_MISTRAL_7B = LlamaConfig(
    vocab_size=32_768,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=32_768,
    rms_norm_eps=1e-5,
    rope_theta=1_000_000.0,
    bos_token_id=1,
    eos_token_id=2,
    model_type="mistral",
)

MISTRAL: dict[str, LlamaConfig] = {
    "mistral-7b": _MISTRAL_7B,
    "mistral-7b-v0.1": dataclasses.replace(_MISTRAL_7B, vocab_size=32_000, rope_theta=10_000.0, sliding_window=4096),
}
