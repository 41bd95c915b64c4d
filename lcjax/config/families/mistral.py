"""Mistral: Llama with other defaults and a sliding window.

The window is not applied yet. For sequences up to its length, attention with the window is full
attention. `LlamaConfig.check_length` rejects longer sequences.

Source: transformers 5, `models/mistral/configuration_mistral.py`.
"""

from __future__ import annotations

import dataclasses

from lcjax.config.families.llama import LLAMA

MISTRAL = dataclasses.replace(
    LLAMA,
    model_type="mistral",
    architecture="MistralForCausalLM",
    gguf_architecture=None,  # llama.cpp calls it llama
    keys={
        **LLAMA.keys,
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096 * 32,
        "sliding_window": 4096,
    },
    ignored_keys=frozenset({"attention_bias", "mlp_bias"}),
)
