"""JAX on the CPU and strict about ranks, and the one real pretrained model."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from lcjax.train.arguments import demo_model

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, found without importing its package, which needs llama.cpp."""
    return demo_model()
