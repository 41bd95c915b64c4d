"""OLMo 2.

Sources: allenai/OLMo-2-1124-7B, -13B, OLMo-2-0325-32B.
"""

from __future__ import annotations

import dataclasses

from lcjax.config.model import LlamaConfig

_OLMO_2_7B = LlamaConfig(
    vocab_size=100_352,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    max_position_embeddings=4096,
    rms_norm_eps=1e-6,
    rope_theta=500_000.0,
    eos_token_id=100_257,
    model_type="olmo2",
)
_OLMO_2_13B = dataclasses.replace(
    _OLMO_2_7B,
    hidden_size=5120,
    intermediate_size=13_824,
    num_hidden_layers=40,
    num_attention_heads=40,
    num_key_value_heads=40,
)

OLMO: dict[str, LlamaConfig] = {
    "olmo-2-7b": _OLMO_2_7B,
    "olmo-2-13b": _OLMO_2_13B,
    "olmo-2-32b": dataclasses.replace(
        _OLMO_2_13B, intermediate_size=27_648, num_hidden_layers=64, num_key_value_heads=8
    ),
}
