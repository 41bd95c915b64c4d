"""A model as commands that do not train load it: by name, perhaps with an adapter."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from lcjax import api, ops, quant, weights
from lcjax.errors import InputError
from lcjax.model import Llama
from lcjax.rope import check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class ModelArguments:
    """Which model, and how it is loaded: the flags that the commands share.

    Raises:
      InputError: a value that is not supported.
    """

    model: str
    """A Hugging Face directory or hub id, or a .gguf file."""
    adapter: Path | None = None
    """A PEFT directory, such as an adapter/ that lcjax.train wrote; it is not merged into the weights."""
    dtype: str = "auto"
    """Of the weights: float32, bfloat16, or auto (float32 on a CPU, bfloat16 on a GPU)."""
    quantize: str | None = None
    """nf4: the layers' linear maps in four bits, as bitsandbytes has them."""
    attention: str = "auto"
    """Implementation of attention: auto, pallas or xla (see lcjax.dispatch)."""
    rope_scaling: str = "auto"
    """RoPE beyond the trained context, as in lcjax.train; an adapter brings its own."""
    rope_theta: float | None = None
    """RoPE's base, if not the model's."""

    def __post_init__(self):
        if not ops.takes_segments(self.attention):
            raise InputError(f"--attention {self.attention} is of training alone; use auto, pallas or xla")
        quant.check_kind(self.quantize)
        api.resolve_dtype(self.dtype)
        check_choice(self.rope_scaling, self.rope_theta)

    def check_adapter(self) -> None:
        """Reads the adapter, which is small, before the time is spent that the weights of the model take.

        Raises:
          InputError: as `load` does.
        """
        if self.adapter:
            weights.load_adapter(self.adapter, weights.open_model_files(weights.resolve_model(self.model)).config)

    def load(self, max_seq_length: int | None) -> tuple[Llama, Llama | None, PreTrainedTokenizerFast]:
        """(the base model, the same weights under the adapter or None, the tokenizer), for sequences up to that length.

        Raises:
          InputError: there is no such model or adapter, or they do not belong together.
        """
        base, tokenizer = api.from_pretrained(
            self.model,
            max_seq_length,
            self.dtype,
            attention=self.attention,
            quantize=self.quantize,
            rope_scaling=self.rope_scaling,
            rope_theta=self.rope_theta,
        )
        return base, api.load_adapter(base, self.adapter) if self.adapter else None, tokenizer
