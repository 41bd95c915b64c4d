"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini, whose files all say phi3.

One matrix has the rows of queries, keys and values, and another those of gate and up. So do the
parameters and their adapters, because PEFT's adapter of such a matrix is one pair of factors.

Source: transformers 5, `models/phi3`; llama.cpp, `conversion/phi.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lcjax.config.families.family import AttentionView, Family
from lcjax.config.families.parameters.decoder import decoder_parameters

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

_DROPOUT = ("resid_pdrop", "embd_pdrop", "attention_dropout")


def _refusal(config: LlamaConfig) -> str | None:
    for key in _DROPOUT:
        if (rate := config.own_value(key)) != 0:
            return f"{key}={rate!r}: only the adapter can have dropout: set it to 0"
    return None


def _written(values: dict[str, Any]) -> dict[str, Any]:
    """transformers 4 accepts three keys for longrope, and computes the factor from two lengths."""
    if (rope := values["rope_scaling"]) is None:
        return values
    original = rope.pop("original_max_position_embeddings")
    if rope["factor"] == values["max_position_embeddings"] / original:
        del rope["factor"]
    rope = {"type": rope.pop("rope_type"), **rope}
    return values | {"original_max_position_embeddings": original, "rope_scaling": rope}


PHI3 = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    gguf_architecture="phi3",
    gguf_keys={
        "attention.sliding_window": "sliding_window",
        "rope.scaling.original_context_length": "original_max_position_embeddings",
    },
    gguf_longrope=True,
    keys={
        "vocab_size": 32_064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "bos_token_id": 1,
        "eos_token_id": 32_000,
    },
    own_keys={
        "original_max_position_embeddings": 4096,
        "pad_token_id": 32_000,  # transformers' embedding needs it in its vocabulary
        **dict.fromkeys(_DROPOUT, 0.0),
    },
    rope_kinds=("default", "longrope"),
    parameters=decoder_parameters(joint=True),
    sees=lambda config, layer: AttentionView(window=config.sliding_window),
    refusal=_refusal,
    written=_written,
)
