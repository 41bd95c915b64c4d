"""Llama: full causal attention and a SwiGLU, each after a norm.

Source: transformers 5, `models/llama/configuration_llama.py`; llama.cpp,
`gguf-py/gguf/constants.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcjax.config.families.family import Family, Parameter, linear, norm

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
    parameters=(
        Parameter(("embed_tokens", "weight"), "model.embed_tokens.weight", "token_embd.weight", ("vocab", "embed")),
        norm("input_layernorm", "attn_norm", "embed"),
        *linear("self_attn.q_proj", "attn_q", "heads", "embed", has_bias=_attention_bias, interleaved=True),
        *linear("self_attn.k_proj", "attn_k", "kv_heads", "embed", has_bias=_attention_bias, interleaved=True),
        *linear("self_attn.v_proj", "attn_v", "kv_heads", "embed", has_bias=_attention_bias),
        *linear("self_attn.o_proj", "attn_output", "embed", "heads", has_bias=_attention_bias),
        *linear("mlp.gate_proj", "ffn_gate", "mlp", "embed", has_bias=_mlp_bias),
        *linear("mlp.up_proj", "ffn_up", "mlp", "embed", has_bias=_mlp_bias),
        *linear("mlp.down_proj", "ffn_down", "embed", "mlp", has_bias=_mlp_bias),
        norm("post_attention_layernorm", "ffn_norm", "embed"),
        Parameter(("norm", "weight"), "model.norm.weight", "output_norm.weight", ("embed",)),
        Parameter(
            ("lm_head", "weight"),
            "lm_head.weight",
            "output.weight",
            ("vocab", "embed"),
            matmul=True,  # by the embedding if they are tied
            stored=lambda config: not config.tie_word_embeddings,
        ),
    ),
)
