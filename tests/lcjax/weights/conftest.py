"""A tiny random Llama of transformers, used by most tests of weights, and small models of lcjax."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest
import transformers
from safetensors.torch import load_file, save_file

from lcjax import weights
from lcjax.weights.hf import SINGLE_FILE
from tests.support.gguf_models import ENDS, SIZES, TEMPLATE, config_of, in_both_halves
from tests.support.tiny_llama import random_params

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


@pytest.fixture(scope="session")
def small_tokenizer(model_dir):
    """All bytes and some merges, in fewer tokens than the small models have."""
    found = weights.load_tokenizer(model_dir)
    found.chat_template = TEMPLATE
    assert len(found) < SIZES["vocab_size"]
    return found


@pytest.fixture(scope="session")
def small_model_of(small_tokenizer, tmp_path_factory):
    """Saves a model with random weights that float16 and bfloat16 represent; returns its folder."""

    def save(**fields) -> Path:
        config = config_of(**fields)
        params = jax.tree.map(in_both_halves, random_params(config))
        folder = tmp_path_factory.mktemp("saved") / "tiny-model"
        weights.save_checkpoint(folder, params, config, small_tokenizer, generation_config=ENDS)
        return folder

    return save


@pytest.fixture(scope="session")
def small_llama(small_model_of) -> Path:
    return small_model_of()
