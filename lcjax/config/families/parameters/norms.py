"""Which norms a layer has, and how they use their weights."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Norms:
    """A layer's norms by name, None where it has none, and how all norms use their weights.

    Attributes:
      before_attention, before_mlp: of the residual stream, before attention and the MLP read it.
      after_attention, after_mlp: of their results, before these are added to the residual stream.
      offset: normalized values are multiplied by `offset + weight`.
      in_float32: whether they are rounded to the dtype of activations after the product, and not
        before it.
    """

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    offset: float = 0.0
    in_float32: bool = False

    @property
    def of_layer(self) -> tuple[str, ...]:
        """The names of the norms that a layer has."""
        names = self.before_attention, self.after_attention, self.before_mlp, self.after_mlp
        return tuple(name for name in names if name is not None)


PRE_NORMS = Norms()
"""Those of Llama, before attention and before the MLP."""
