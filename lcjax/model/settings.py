"""How a model runs, and its adapter's config."""

from __future__ import annotations

import dataclasses

from lcjax.config import LoraConfig, MemorySettings, resolve_memory
from lcjax.config.memory import check_loss_chunk
from lcjax.config.policies import resolve_policy
from lcjax.ops.attention.passes import has_passes


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The settings of a model in addition to its config and weights: how it runs, and its adapter.

    Attributes:
      max_seq_length: in tokens.
      name_or_path: the source of the base weights, for the config of a saved adapter.
      lora: the adapter's config, or None.
      use_gradient_checkpointing: a name that `lcjax.config.policies.resolve_policy` accepts.
      attention: the implementation of attention, or "auto".
      memory: how layers run in tiles: MemorySettings, "none" or "auto".
      loss_chunk: the number of tokens whose logits exist at a time. None means the value of
        `lcjax.ops.cross_entropy.chunk_tokens`.
      one_document_a_row: a guarantee that each row of a batch has only one document. Attention then
        needs no segment ids, which cuDNN and FlashAttention-3 do not support.
      generation_config: the text of the generation_config.json of the base weights; it is saved
        together with new weights.

    Raises:
      InputError: `loss_chunk` is not positive.
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
        """How layers run over sequences of `tokens` tokens; None means without tiles."""
        return resolve_memory(self.memory, tokens, attention_has_passes=has_passes(self.attention))

    def policy_for(self, tokens: int) -> str:
        """The gradient checkpointing policy for sequences of `tokens` tokens.

        It is one of `lcjax.config.policies.POLICIES`.
        """
        in_tiles = self.memory_for(tokens) is not None
        return resolve_policy(self.use_gradient_checkpointing, tokens, in_tiles=in_tiles)
