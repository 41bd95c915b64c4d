"""A step to measure: the model's shape, the trained parameters, and how the step runs."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """LoRA or full fine-tuning with AdamW, one sequence per step, random weights."""

    model: str = "llama-3.1-8b"
    """A preset or a config.json file."""
    quantize: str = "nf4"
    """nf4, or none for bfloat16."""
    attention: str = "auto"
    """Implementation of attention."""
    lora_r: int = 32
    """Rank of the adapter. 0 trains every weight."""
    optimizer_memory: str = "auto"
    """Where AdamW's state is stored, as in lcjax.train."""
