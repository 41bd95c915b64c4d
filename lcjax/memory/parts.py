"""A layer as the memory engine sees it: functions of its parameters that work position by position.

Shapes: B batch, t tokens of a tile, D hidden size, H query heads, K key/value heads, d head_dim.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import jax

from lcjax.memory.stacked import layer_at
from lcjax.memory.trainable import Parameters
from lcjax.ops.dropout import DropoutKey
from lcjax.parallel.weights import gather_layer

Tree = Any
Load = Any
"""Sums over tokens and layers that travel with the residual stream; None if there are none.

They are `lcjax.ops.grouped.ExpertLoad`.
"""


class LayerParts(Protocol):
    """The position-wise parts of a layer; hashable. `key` is for dropout; None means no dropout."""

    def before_attention(
        self, params: Tree, x_BtD: jax.Array, context: Any, key: DropoutKey | None, /
    ) -> tuple[jax.Array, ...]:
        """(q_BtHd, k_BtKd, v_BtKd)."""
        ...

    def sinks(self, params: Tree, /) -> jax.Array | None:
        """The logits that join the softmax of each head, float32 [H]; None if there are none."""
        ...

    @property
    def normalizes_attention(self) -> bool:
        """Whether `add_attention` does more than to add."""
        ...

    def attention_output(self, params: Tree, out_BtHd: jax.Array, key: DropoutKey | None, /) -> jax.Array:
        """The projection of attention's output, [B, t, D]. Those of groups of heads add up."""
        ...

    def add_attention(self, params: Tree, x_BtD: jax.Array, output_BtD: jax.Array, /) -> jax.Array:
        """The residual stream after attention, from the projection of its whole output."""
        ...

    def feed_forward(
        self, params: Tree, x_BtD: jax.Array, key: DropoutKey | None, load: Load, counted_Bt: jax.Array | None, /
    ) -> tuple[jax.Array, Load]:
        """(the residual stream after the MLP [B, t, D], the load with that of the tile)."""
        ...

    def heads(self, params: Tree, group: jax.Array, groups: int, /) -> tuple[Tree, LayerParts]:
        """(parameters, parts) of attention with one group of the key/value heads and their queries.

        `groups` is the number of equal groups.
        """
        ...


class LayerInputs(NamedTuple):
    """What one layer reads in addition to the residual stream.

    `context` has the positions, segment ids and places of all tokens, which tokens count in the
    load of experts, what the layer's attention sees, and the `mesh` of the devices.
    """

    params: Parameters
    dropout_key: jax.Array | None
    context: Any

    def of(self, layer: jax.Array) -> LayerInputs:
        """The inputs of one layer, from the stacked parameters and keys of all layers.

        The parameters are whole, also if devices share them.
        """
        params = layer_at(self.params, layer).replaced(functools.partial(gather_layer, self.context.mesh))
        key = layer_at(self.dropout_key, layer)
        return self._replace(params=params, dropout_key=key, context=self.context.of_layer(layer))
