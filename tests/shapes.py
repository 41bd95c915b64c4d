"""One table of named shapes for the tests of operations and of models: awkward on purpose.

Lengths lie on, just beside and far from the block of 512; head counts give 1, 3, 4 and 8 query heads a key/value head.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """A call of `ops.attention`. `segments` is None, "packed" (ascending ids) or "arbitrary" (ids in any order)."""

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    batch: int = 1
    keys: int | None = None
    causal: bool = True
    query_offset: int | None = None
    segments: str | None = None


ATTENTION = {
    "one query": AttentionShape(1, 3, 1, 16, batch=2, keys=17),
    "gqa 1": AttentionShape(17, 2, 2, 20, batch=2),
    "gqa 3": AttentionShape(127, 6, 2, 64),
    "gqa 4": AttentionShape(512, 4, 1, 16),
    "gqa 8": AttentionShape(513, 8, 1, 80),
    "full": AttentionShape(513, 3, 1, 64, causal=False),
    "many blocks": AttentionShape(1025, 2, 1, 128),
    "packed": AttentionShape(1000, 3, 1, 64, batch=2, segments="packed"),
    "packed full": AttentionShape(1025, 2, 2, 20, causal=False, segments="packed"),
    "arbitrary segments": AttentionShape(600, 4, 1, 16, batch=2, segments="arbitrary"),
    "arbitrary segments full": AttentionShape(127, 3, 3, 20, keys=513, causal=False, segments="arbitrary"),
    "decoding": AttentionShape(17, 8, 1, 64, keys=1000),
    "queries from the start": AttentionShape(127, 4, 1, 20, keys=600, query_offset=0),
    "queries in the middle": AttentionShape(513, 2, 1, 16, keys=1025, query_offset=300),
    "fewer keys": AttentionShape(600, 3, 1, 16, keys=127, batch=2),
    "fewer keys, later queries": AttentionShape(520, 2, 1, 16, keys=40, query_offset=-3),
    "after all keys": AttentionShape(17, 2, 1, 16, keys=520, query_offset=100_000),
}
# Once more in bfloat16: the extremes of head counts, segments of both kinds, blind queries.
ATTENTION_BFLOAT16 = ("gqa 1", "gqa 3", "gqa 8", "packed", "arbitrary segments", "fewer keys")


# Fields of transformers' LlamaConfig. No two axes of a model have the same size, so that a mix-up changes a shape or a value.
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
}
MODEL_COMMON = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_hidden_layers": 3,
    "max_position_embeddings": 65_536,
}
