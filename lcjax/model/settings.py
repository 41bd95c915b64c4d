"""How a model is run, and what its adapter is."""

from __future__ import annotations

import dataclasses

from lcjax.config import LoraConfig, MemorySettings, resolve_memory
from lcjax.config.memory import check_loss_chunk
from lcjax.config.policies import resolve_policy
from lcjax.ops.attention.passes import has_passes


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What a model is besides its shape and weights: how it is run and what its adapter is.

    Attributes:
      max_seq_length: in tokens.
      name_or_path: where the base weights came from, for the adapter's own config.
      lora: the adapter, or None.
      use_gradient_checkpointing: a name that `lcjax.config.policies.resolve_policy` knows.
      attention: the implementation of attention, or "auto".
      memory: how layers run in tiles: MemorySettings, "none" or "auto".
      loss_chunk: tokens whose logits exist at a time; None for what `lcjax.ops.cross_entropy.chunk_tokens` says.
      one_document_a_row: a promise that no row of a batch holds a second document, so that attention needs no segment ids,
        which cuDNN and FlashAttention-3 do not take.
      generation_config: the text of the generation_config.json that came with the base weights, which saved weights get too.

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
        check_loss_chunk(self.loss_chunk)

    def memory_for(self, tokens: int) -> MemorySettings | None:
        """How layers run over sequences of that many tokens; None: without tiles."""
        return resolve_memory(self.memory, tokens, attention_has_passes=has_passes(self.attention))

    def policy_for(self, tokens: int) -> str:
        """The gradient checkpointing of sequences of that many tokens, one of `lcjax.config.policies.POLICIES`."""
        in_tiles = self.memory_for(tokens) is not None
        return resolve_policy(self.use_gradient_checkpointing, tokens, in_tiles=in_tiles)
