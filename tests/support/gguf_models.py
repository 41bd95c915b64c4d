"""Small models in Hugging Face's format, to be written as GGUF files."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from lcjax.config import LlamaConfig, RopeScaling
from lcjax.convert.__main__ import main

# All axes have different sizes; heads are not hidden_size / num_attention_heads.
SIZES = {
    "vocab_size": 330,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
}
KINDS = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral"},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
    "olmo2": {"model_type": "olmo2"},
    "smollm3": {"model_type": "smollm3", "own_values": (("pad_token_id", None),)},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "own_values": (
            ("num_experts", 5),
            ("num_experts_per_tok", 2),
            ("moe_intermediate_size", 160),
            ("norm_topk_prob", True),
        ),
    },
}
ENDS = '{"eos_token_id": [0, 2, 5], "temperature": 0.7}'
TEMPLATE = "{% for message in messages %}{{ message['content'] + '<eos>' }}{% endfor %}"


def gemma(model_type: str, tie_word_embeddings: bool = True, **own_values) -> dict:
    """Returns the fields of a Gemma, by default one that GGUF can express."""
    own = {"query_pre_attn_scalar": SIZES["head_dim"]} | own_values
    fields = {"tie_word_embeddings": tie_word_embeddings, "sliding_window": 100, "own_values": tuple(own.items())}
    return {"model_type": model_type, **fields}


KINDS["gemma3"] = gemma("gemma3_text", tie_word_embeddings=False, rope_local_base_freq=5000.0, sliding_window_pattern=2)
KINDS["gemma3"]["rope_scaling"] = RopeScaling("linear", factor=8.0)
KINDS["gemma2"] = gemma("gemma2", attn_logit_softcapping=20.5)


# Three quarters of a head's dimensions are rotated.
LONGROPE = {
    "model_type": "phi3",
    "rope_scaling": RopeScaling(
        "longrope",
        factor=2.0,
        original_max_position_embeddings=64,
        short_factor=tuple(1 + i / 8 for i in range(12)),
        long_factor=tuple(1.5 + i for i in range(12)),
    ),
    "partial_rotary_factor": 0.75,
    "own_values": (("original_max_position_embeddings", 64),),
}
KINDS["phi3"] = {"model_type": "phi3", "sliding_window": 100}
KINDS["phi3, longrope"] = LONGROPE


def config_of(**fields) -> LlamaConfig:
    return LlamaConfig(**{**SIZES, **fields})


def in_both_halves(leaf) -> np.ndarray:
    """Rounds to values that float16 and bfloat16 represent, in float32."""
    rounded = np.asarray(leaf.astype("bfloat16").astype("float32"))
    return np.where(np.abs(rounded) < np.finfo(np.float16).smallest_normal, np.float32(0), rounded)


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def converted(source: Path, path: Path, *flags) -> Path:
    assert run(source, path, *flags) == 0
    return path


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right), strict=True)
