"""RoPE of a layer, among layers that may differ in it.

A scan over such layers has one program for all of them. It selects the frequencies of the current
layer from an array of all kinds, so no branch is needed.

Shapes: F rotated pairs, N kinds of layers.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from lcjax.config import LlamaConfig
from lcjax.ops.rope import layer_rotation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rotation:
    """How queries and keys are rotated, in one layer or in all layers.

    Attributes:
      inverse_frequencies_F: float32, radians per token. If the layers differ, it is [N, F] of all
        kinds until `of_layer` selects one.
      layer_factor: the attention factor, float32, of one layer or [N]; None if it is the same in
        all layers.
      common_factor: the attention factor of all layers, if it is the same.
      kind_of_layer: the index of every layer's kind; empty if there is only one kind.
    """

    inverse_frequencies_F: jax.Array
    layer_factor: jax.Array | None
    common_factor: float = dataclasses.field(metadata={"static": True})
    kind_of_layer: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of_model(cls, config: LlamaConfig, tokens: int | jax.Array) -> Rotation:
        """That of all layers, for sequences of `tokens` tokens."""
        kinds = [layer_rotation(config, rotary, tokens) for rotary in config.rotaries]
        frequencies, factors = zip(*kinds, strict=True)
        if len(kinds) == 1:
            return cls(jnp.asarray(frequencies[0]), None, factors[0], ())
        layer_factor = jnp.asarray(factors, jnp.float32) if len(set(factors)) > 1 else None
        return cls(jnp.stack([jnp.asarray(x) for x in frequencies]), layer_factor, factors[0], config.rotary_of_layer)

    def of_layer(self, layer: jax.Array) -> Rotation:
        """That of one layer, whose number may be traced."""
        if not self.kind_of_layer:
            return self
        kind = jnp.asarray(self.kind_of_layer, jnp.int32)[layer]
        factor = None if self.layer_factor is None else self.layer_factor[kind]
        return Rotation(self.inverse_frequencies_F[kind], factor, self.common_factor, ())

    @property
    def attention_factor(self) -> float | jax.Array:
        """The factor of cosines and sines: a constant, or a float32 scalar if layers differ."""
        return self.common_factor if self.layer_factor is None else self.layer_factor
