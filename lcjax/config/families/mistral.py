"""Mistral: Llama without biases, and with a window in every layer; Ministral: in some layers.

Source: transformers 5, `models/mistral/configuration_mistral.py` and `models/ministral`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lcjax.config.families import windows
from lcjax.config.families.family import AttentionView, Family
from lcjax.config.families.llama import LLAMA
from lcjax.config.families.parameters.decoder import decoder_parameters

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

_WITHOUT = ("attention_bias", "mlp_bias")

MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    gguf_architecture=LLAMA.gguf_architecture,  # llama.cpp has no other name for it, and no window
    gguf_rope_factors=True,
    keys={
        **{key: default for key, default in LLAMA.keys.items() if key not in _WITHOUT},
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096 * 32,
        "sliding_window": 4096,
    },
    parameters=decoder_parameters(interleaved=True),
    sees=lambda config, layer: AttentionView(window=config.sliding_window),
)


def _kinds(config: LlamaConfig) -> tuple[str, ...]:
    """What each layer of a Ministral sees."""
    if (given := config.own_value("layer_types")) is not None:
        return given
    return (windows.FULL if config.sliding_window is None else windows.WINDOW,) * config.num_hidden_layers


MINISTRAL = dataclasses.replace(
    MISTRAL,
    model_type="ministral",
    architecture="MinistralForCausalLM",
    own_keys={"layer_types": None},
    sees=lambda config, layer: AttentionView(window=windows.window(config, _kinds(config)[layer])),
    refusal=lambda config: windows.refusal(config, _kinds(config)),
)
