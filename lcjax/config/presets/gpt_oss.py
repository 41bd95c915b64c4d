"""gpt-oss, with the experts' weights in MXFP4.

Sources: openai/gpt-oss-20b, openai/gpt-oss-120b.
"""

from __future__ import annotations

import dataclasses

from lcjax.config.families.gpt_oss import ROPE
from lcjax.config.model import LlamaConfig
from lcjax.config.rope import RopeScaling

_GPT_OSS_120B = LlamaConfig(
    vocab_size=201_088,
    hidden_size=2880,
    intermediate_size=2880,
    num_hidden_layers=36,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=64,
    max_position_embeddings=131_072,
    rms_norm_eps=1e-5,
    rope_theta=150_000.0,
    rope_scaling=RopeScaling(**ROPE),
    attention_bias=True,
    sliding_window=128,
    eos_token_id=200_002,
    model_type="gpt_oss",
    own_values=(("num_local_experts", 128), ("quantization", "mxfp4")),
)

GPT_OSS: dict[str, LlamaConfig] = {
    "gpt-oss-20b": dataclasses.replace(
        _GPT_OSS_120B, num_hidden_layers=24, own_values=(("num_local_experts", 32), ("quantization", "mxfp4"))
    ),
    "gpt-oss-120b": _GPT_OSS_120B,
}
