"""A decoder layer and its backward pass over tiles of the sequence, in place.

The position-wise parts are norm, projections and RoPE before attention, and the output projection
and MLP after it. They run tile by tile and are recomputed in the backward pass, so their
intermediate results exist for only one tile at a time. For the whole sequence the backward pass
holds the input, its cotangent, queries, keys, values, and attention's output. The cotangent of
attention's output reuses the memory of that output, the cotangent of the queries that of the
queries, and the cotangent of the input that of the cotangent of the layer's output.

Shapes: B batch, T tokens, t tokens of a tile, D hidden size, H query heads, K key/value heads, d
head_dim.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lcjax.memory.parts import LayerInputs, LayerParts, Load
from lcjax.memory.position_wise import Leaves, PositionWise, added, delta_of
from lcjax.memory.tiles import Tiles
from lcjax.ops.attention.passes import Passes


@dataclasses.dataclass(frozen=True)
class TiledLayer:
    """A layer made of position-wise parts and attention."""

    parts: LayerParts
    attention: Passes
    tile: int

    def forward(
        self, x_BTD: jax.Array, load: Load, inputs: LayerInputs, attended: Any = None
    ) -> tuple[tuple[jax.Array, Load], Any]:
        """((the layer's output, the load with its own), (attention's output, log-sum-exp)).

        `attended` is the second result if it is known already. The output reuses x's memory if x is
        not used afterward.
        """
        layer = self._over_tiles(x_BTD, inputs)
        out_BTHd, lse = layer.attend(layer.project(x_BTD)) if attended is None else attended

        def one_tile(i, stream):
            x_BTD, load = stream
            x_BtD, out_BtHd = layer.tiles.take(x_BTD, i), layer.tiles.take(out_BTHd, i)
            y_BtD, load = _after(layer, i, x_BtD, out_BtHd, load, layer.trainable)
            return layer.tiles.put(x_BTD, y_BtD, i), load

        return layer.tiles.loop(one_tile, (x_BTD, load)), (out_BTHd, lse)

    def backward(
        self, x_BTD: jax.Array, inputs: LayerInputs, dy_BTD: jax.Array, dload: Load, attended: Any = None
    ) -> tuple[jax.Array, Leaves]:
        """(dx in dy's memory, float32 gradients of the trainable parameters).

        The layer adds to the load, so the cotangent of the load before it is `dload` too. With
        `attended`, the second result of `forward`, attention's forward pass does not run again.
        """
        layer = self._over_tiles(x_BTD, inputs)
        tiles = layer.tiles
        qkv = layer.project(x_BTD)
        out_BTHd, lse = layer.attend(qkv) if attended is None else attended

        def one_tile(i, carry):
            dx_BTD, out_BTHd, delta_BHT, gradients = carry
            out_BtHd = tiles.take(out_BTHd, i)
            _, pull_back = jax.vjp(
                lambda x, out, trainable: _after(layer, i, x, out, nothing, trainable),
                *(tiles.take(x_BTD, i), out_BtHd, layer.trainable),
            )
            dx_BtD, dout_BtHd, own = pull_back((tiles.take(dx_BTD, i), dload))
            return (
                tiles.put(dx_BTD, dx_BtD, i),
                tiles.put(out_BTHd, dout_BtHd, i),
                tiles.put(delta_BHT, delta_of(out_BtHd, dout_BtHd), i, axis=2),
                added(gradients, own),
            )

        nothing = jax.tree.map(jnp.zeros_like, dload)
        delta_BHT = jnp.zeros((out_BTHd.shape[0], out_BTHd.shape[2], out_BTHd.shape[1]), jnp.float32)
        start = dy_BTD, out_BTHd, delta_BHT, inputs.params.zeros()
        dx_BTD, dout_BTHd, delta_BHT, gradients = tiles.loop(one_tile, start)
        dqkv, gradients = layer.add_attention_gradients(qkv, lse, dout_BTHd, delta_BHT, gradients)
        return layer.add_projection_gradients(x_BTD, dqkv, dx_BTD, gradients)

    def _over_tiles(self, x_BTD: jax.Array, inputs: LayerInputs) -> PositionWise:
        return PositionWise(self.parts, inputs, Tiles.of(x_BTD.shape[1], self.tile), self.attention)


def _after(
    layer: PositionWise, i, x_BtD: jax.Array, out_BtHd: jax.Array, load: Load, trainable: Leaves
) -> tuple[jax.Array, Load]:
    middle_BtD = layer.add_attention(x_BtD, layer.output(i, out_BtHd, trainable), trainable)
    return layer.feed_forward(i, middle_BtD, load, trainable)
