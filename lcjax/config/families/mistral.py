"""Mistral: Llama without biases, and with a window in every layer.

Source: transformers 5, `models/mistral/configuration_mistral.py`.
"""

from __future__ import annotations

from lcjax.config.families.decoder import decoder_parameters
from lcjax.config.families.family import AttentionView, Family
from lcjax.config.families.llama import LLAMA

_WITHOUT = ("attention_bias", "mlp_bias")

MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",  # llama.cpp calls it llama
    keys={
        **{key: default for key, default in LLAMA.keys.items() if key not in _WITHOUT},
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096 * 32,
        "sliding_window": 4096,
    },
    parameters=decoder_parameters(),
    sees=lambda config: AttentionView(window=config.sliding_window),
)
