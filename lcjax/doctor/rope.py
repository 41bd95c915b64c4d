"""Is the length beyond what the model was trained for?"""

from __future__ import annotations

from lcjax.config import LlamaConfig
from lcjax.config.rope_choice import choose_rope, describe_rope
from lcjax.doctor.findings import Finding

QUESTION = "beyond the trained context?"


def on_rope(config: LlamaConfig, max_seq_length: int) -> Finding:
    """What `lcjax.train` will do about RoPE; it chooses automatically, so no flag is needed."""
    _, line = choose_rope(config, max_seq_length)
    if line is not None:
        return Finding(QUESTION, f"yes. {line}")
    return Finding(QUESTION, f"no: {config.max_position_embeddings:,} tokens, {describe_rope(config)}, unchanged")
