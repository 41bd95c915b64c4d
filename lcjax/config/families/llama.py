"""Llama: full causal attention and a SwiGLU, each after a norm.

Source: transformers 5, `models/llama/configuration_llama.py`; llama.cpp,
`gguf-py/gguf/constants.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcjax.config.families.family import Family
from lcjax.config.families.parameters.decoder import decoder_parameters

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig


def _attention_bias(config: LlamaConfig) -> bool:
    return config.attention_bias


def _mlp_bias(config: LlamaConfig) -> bool:
    return config.mlp_bias


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    gguf_architecture="llama",
    gguf_rope_factors=True,
    keys={
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    parameters=decoder_parameters(
        qkv_bias=_attention_bias, output_bias=_attention_bias, mlp_bias=_mlp_bias, interleaved=True
    ),
)
