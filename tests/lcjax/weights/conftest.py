"""A tiny random Llama of transformers, used by most tests of weights."""

from __future__ import annotations

import pytest
import transformers
from safetensors.torch import load_file, save_file

from lcjax.weights.hf import SINGLE_FILE

# GQA, head_dim different from hidden_size / heads, and different sizes of all axes.
TINY = {
    "vocab_size": 101,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.fixture(scope="session")
def tiny_llama():
    """Builds a random float32 `LlamaForCausalLM` from the tiny config with overrides."""

    def build(**overrides) -> transformers.LlamaForCausalLM:
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**TINY, **overrides}))

    return build


@pytest.fixture
def saved(tiny_llama, tmp_path):
    """A saved tiny model and a function that rewrites its tensors."""
    tiny_llama().save_pretrained(tmp_path)

    def rewrite(change):
        tensors = load_file(tmp_path / SINGLE_FILE)
        change(tensors)
        save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})

    return tmp_path, rewrite


@pytest.fixture
def sharded(tiny_llama, tmp_path):
    tiny_llama().save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path
