"""How a model runs, and its adapter's config."""

from __future__ import annotations

import dataclasses

from lcjax.config import LoraConfig
from lcjax.config.execution import Execution, ExecutionRequest, LayerForm


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The settings of a model in addition to its config and weights: how it runs, and its adapter.

    Attributes:
      max_seq_length: in tokens.
      name_or_path: the source of the base weights, for the config of a saved adapter.
      lora: the adapter's config, or None.
      execution: how it runs.
      requested: what `execution` was resolved from. The model does not read it. A caller that
        changes one choice, such as the policy for an adapter, resolves the others again.
      one_document_a_row: a guarantee that each row of a batch has only one document. Attention then
        needs no segment ids, which cuDNN and FlashAttention-3 do not support.
      generation_config: the text of the generation_config.json of the base weights; it is saved
        together with new weights.
      adapter: the directory that the adapter was loaded from; "" for a new one, or none.
    """

    max_seq_length: int
    name_or_path: str = ""
    lora: LoraConfig | None = None
    execution: Execution = dataclasses.field(default_factory=Execution)
    requested: ExecutionRequest = dataclasses.field(default_factory=ExecutionRequest)
    one_document_a_row: bool = False
    generation_config: str | None = None
    adapter: str = ""

    @property
    def local_tokens(self) -> int:
        """A device's tokens of a sequence of `max_seq_length` tokens.

        Raises:
          InputError: the devices cannot have equal parts of a sequence.
        """
        return self.execution.mesh.local_tokens(self.max_seq_length)

    @property
    def form(self) -> LayerForm:
        """How the layers run over a device's tokens of a sequence of `max_seq_length` tokens.

        Raises:
          InputError: as `Execution.form`.
        """
        return self.execution.form(self.local_tokens)
