"""Named shapes for the tests, difficult on purpose: operations and models.

The shapes of operations are from `lcjax_scripts.verify.cases`.
"""

from __future__ import annotations

from typing import Any

from lcjax_scripts.verify.cases import ATTENTION, AttentionShape

__all__ = ["ATTENTION", "ATTENTION_BFLOAT16", "MODELS", "MODEL_COMMON", "AttentionShape"]

# Shapes that are repeated in bfloat16: extreme head counts, both kinds of segments, queries without
# keys.
ATTENTION_BFLOAT16 = ("gqa 1", "gqa 3", "gqa 8", "packed", "arbitrary segments", "fewer keys")


# Fields of config.json; the model_type is llama if it is not given. All axes of a model have
# different sizes, so that confusing two axes changes a shape or a value.
MODELS: dict[str, dict[str, Any]] = {
    "tied gqa 1": {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 18, "tie_word_embeddings": True},
    "untied gqa 3, odd head_dim": {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20},
    "tied gqa 4, llama3 rope": {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "untied gqa 8, biases": {
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 10,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "one layer, attention bias, eps": {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "num_hidden_layers": 1,
        "attention_bias": True,
        "rms_norm_eps": 1e-3,
    },
    "bfloat16": {
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 20,
        "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    },
    "bfloat16 biases, tied": {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "dtype": "bfloat16",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "mistral, window": {
        "model_type": "mistral",
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 20,
        "sliding_window": 20,
    },
    "qwen2, tied": {
        "model_type": "qwen2",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 20,
        "tie_word_embeddings": True,
    },
    "qwen2, window": {
        "model_type": "qwen2",
        "num_attention_heads": 6,
        "num_key_value_heads": 1,
        "use_sliding_window": True,
        "max_window_layers": 0,
        "sliding_window": 20,
    },
    "qwen2, windows in later layers": {
        "model_type": "qwen2",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "use_sliding_window": True,
        "max_window_layers": 1,
        "sliding_window": 20,
    },
    "ministral, alternating windows": {
        "model_type": "ministral",
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 20,
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "smollm3, the last layer without RoPE": {
        "model_type": "smollm3",
        "pad_token_id": None,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 20,
    },
    # yarn's attention factor is that of the layers with RoPE alone.
    "smollm3, yarn, windows without RoPE, biases": {
        "model_type": "smollm3",
        "pad_token_id": None,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "no_rope_layers": [0, 1, 0],
        "use_sliding_window": True,
        "sliding_window": 20,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": True,
        },
    },
    # The second frequencies of longrope apply from 65 tokens on.
    "phi3, window, longrope": {
        "model_type": "phi3",
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "sliding_window": 20,
        "pad_token_id": None,
        "original_max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.1, 1.3],
            "long_factor": [1.2, 4.0, 9.5],
        },
    },
    "phi3, tied, partly rotated": {
        "model_type": "phi3",
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "pad_token_id": None,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 250_000.0, "partial_rotary_factor": 0.75},
    },
    "qwen3": {"model_type": "qwen3", "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20},
    "qwen3, biases, bfloat16": {
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    },
    "qwen3, experts": {
        "model_type": "qwen3_moe",
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 20,
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 28,
        "norm_topk_prob": True,
    },
    # With seed 0, one gradient of layer 0 is a difference of nearly equal numbers. Its rounding
    # alone reaches the limit (1.01); with seeds 1 to 9 the largest error is 0.26 to 0.52 of it.
    "qwen3, one of 5 experts, biases, tied": {
        "seed": 1,
        "model_type": "qwen3_moe",
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "num_experts": 5,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 36,
        "norm_topk_prob": False,
    },
    "gpt-oss": {
        "model_type": "gpt_oss",
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 20,
        "sliding_window": 20,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
    },
    "olmo2": {"model_type": "olmo2", "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20},
    "olmo2, biases, bfloat16": {
        "model_type": "olmo2",
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "attention_bias": True,
        "dtype": "bfloat16",
    },
    "gemma2": {
        "model_type": "gemma2",
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 20,
        "sliding_window": 20,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma2, layer types, bfloat16": {
        "model_type": "gemma2",
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "attention_bias": True,
        "sliding_window": 20,
        "query_pre_attn_scalar": 24,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 20,
        "sliding_window": 20,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 20,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        },
    },
    "gemma3, layer types, bfloat16": {
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "attention_bias": True,
        "sliding_window": 20,
        "query_pre_attn_scalar": 24,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "final_logit_softcapping": 3.0,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
}
MODEL_COMMON = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_hidden_layers": 3,
    "max_position_embeddings": 65_536,
}
