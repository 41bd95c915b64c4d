"""How a model is run, and what its adapter is."""

from __future__ import annotations

import dataclasses

from lcjax import remat
from lcjax.attention_halves import runs_in_halves
from lcjax.config import LoraConfig
from lcjax.errors import InputError
from lcjax.memory import MemorySettings, resolve_memory


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What a model is besides its shape and weights: how it is run and what its adapter is.

    `max_seq_length` is in tokens; `use_gradient_checkpointing` is a name that `lcjax.remat.resolve_policy` knows; `name_or_path` is
    where the base weights came from, for the adapter's own config; `memory` says how layers run in tiles: MemorySettings, "none" or
    "auto" (see `lcjax.memory`); `loss_chunk` is how many tokens' logits exist at a time, None for what
    `lcjax.loss.chunk_tokens` says; `generation_config` is the text of the generation_config.json that came with the base weights,
    which saved weights get as well; `one_document_a_row` promises that no row of a batch holds a second document, so that attention
    needs no segment ids, which cuDNN and FlashAttention-3 do not take.

    Raises:
      InputError: a chunk that is not positive.
    """

    max_seq_length: int
    name_or_path: str = ""
    lora: LoraConfig | None = None
    use_gradient_checkpointing: str = "auto"
    attention: str = "auto"
    memory: MemorySettings | str = "auto"
    loss_chunk: int | None = None
    one_document_a_row: bool = False
    generation_config: str | None = None

    def __post_init__(self):
        if self.loss_chunk is not None and self.loss_chunk < 1:
            raise InputError(
                f"--loss-chunk {self.loss_chunk} is no number of tokens; use 1 or more, 256 to 1024 for a GPU"
            )

    def memory_for(self, tokens: int) -> MemorySettings | None:
        """How layers run over sequences of that many tokens; None: without tiles."""
        return resolve_memory(self.memory, tokens, attention_in_halves=runs_in_halves(self.attention))

    def policy_for(self, tokens: int) -> str:
        """The gradient checkpointing of sequences of that many tokens, one of `lcjax.remat.POLICIES`."""
        in_tiles = self.memory_for(tokens) is not None
        return remat.resolve_policy(self.use_gradient_checkpointing, tokens, in_tiles=in_tiles)
