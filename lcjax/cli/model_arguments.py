"""Flags of the commands that load a model without training it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lcjax.config.precision import check_dtype, check_quantize
from lcjax.config.rope_choice import check_choice
from lcjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ModelArguments:
    """The flags that these commands share: which model, and how it is loaded.

    Raises:
      InputError: a value is not supported.
    """

    model: str
    """A Hugging Face directory or hub id, or a .gguf file."""
    adapter: Path | None = None
    """A PEFT directory, such as an adapter/ of lcjax.train; it is not merged into the weights."""
    dtype: str = "auto"
    """dtype of the weights: float32, bfloat16, or auto (float32 on a CPU, bfloat16 on a GPU)."""
    quantize: str | None = None
    """nf4: the layers' linear maps in 4 bits, in the format of bitsandbytes."""
    attention: str = "auto"
    """Implementation of attention: auto, pallas or xla (see lcjax.ops.attention.registry)."""
    rope_scaling: str = "auto"
    """RoPE beyond the trained context, as in lcjax.train; an adapter has its own setting."""
    rope_theta: float | None = None
    """RoPE's base, if different from the model's."""

    def __post_init__(self):
        if self.attention != "auto":
            # imports JAX, which --help does not need
            from lcjax.ops.attention.registry import takes_segments

            if not takes_segments(self.attention):
                raise InputError(f"--attention {self.attention} is for training only; use auto, pallas or xla")
        check_quantize(self.quantize)
        check_dtype(self.dtype)
        check_choice(self.rope_scaling, self.rope_theta)
