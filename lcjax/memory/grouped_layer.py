"""A decoder layer whose attention runs one group of key/value heads after another.

Queries, keys, values, attention's output and all their cotangents exist for only one group at a
time. The contribution of each group is added to the residual stream immediately. If attention is
followed by a norm, the contributions are added up in an array of their own. This has a cost.
The norm before the projections and the dequantization of quantized weights run again for every
group. The backward pass computes attention's forward pass twice: once for the residual stream after
attention, and once for the current group.

Shapes: B batch, T tokens, t tokens of a tile, D hidden size, H query heads (of a group), d
head_dim, G groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.memory.parts import LayerInputs, LayerParts, Load
from lcjax.memory.position_wise import Leaves, PositionWise, added, delta_of
from lcjax.memory.tiles import Tiles
from lcjax.memory.trainable import Parameters
from lcjax.ops.attention.passes import Passes


@dataclasses.dataclass(frozen=True)
class GroupedLayer:
    """Like `TiledLayer`, with attention in `groups` groups of heads."""

    parts: LayerParts
    attention: Passes
    tile: int
    groups: int

    def forward(
        self, x_BTD: jax.Array, load: Load, inputs: LayerInputs, attended: None = None
    ) -> tuple[tuple[jax.Array, Load], None]:
        """((the layer's output, the load with its own), None).

        Attention's complete output never exists.
        """
        layer = self._over_tiles(self.parts, x_BTD, inputs)
        *others, y_BTD = self._after_attention(x_BTD, inputs)

        def one_tile(i, carry):
            y_BTD, load = carry
            streams = [layer.tiles.take(x, i) for x in (*others, y_BTD)]
            y_BtD, load = _rest(layer, i, streams, load, layer.trainable)
            return layer.tiles.put(y_BTD, y_BtD, i), load

        return layer.tiles.loop(one_tile, (y_BTD, load)), None

    def backward(
        self, x_BTD: jax.Array, inputs: LayerInputs, dy_BTD: jax.Array, dload: Load, attended: None = None
    ) -> tuple[jax.Array, Leaves]:
        """(dx, float32 gradients of the trainable parameters), from the layer's input."""
        layer = self._over_tiles(self.parts, x_BTD, inputs)
        tiles, streams = layer.tiles, self._after_attention(x_BTD, inputs)
        nothing = jax.tree.map(jnp.zeros_like, dload)

        def one_tile(i, carry):
            dstreams, gradients = carry
            _, pull_back = jax.vjp(
                lambda streams, trainable: _rest(layer, i, streams, nothing, trainable),
                [tiles.take(stream, i) for stream in streams],
                layer.trainable,
            )
            parts, own = pull_back((tiles.take(dstreams[0], i), dload))
            return [tiles.put(x, part, i) for x, part in zip(dstreams, parts, strict=True)], added(gradients, own)

        start = [dy_BTD, *(jnp.zeros_like(dy_BTD) for _ in streams[1:])], inputs.params.zeros()
        dstreams, gradients = tiles.loop(one_tile, start)

        def one_group(j, carry):
            dx_BTD, gradients = carry
            group, pull_back = self._group(j, x_BTD, inputs)
            dx_BTD, own = _group_gradients(group, x_BTD, dstreams[-1], dx_BTD)
            return dx_BTD, added(gradients, pull_back(own))

        return lax.fori_loop(0, self.groups, one_group, (dstreams[0], gradients))

    def _after_attention(self, x_BTD: jax.Array, inputs: LayerInputs) -> list[jax.Array]:
        """What the rest of the layer reads: the residual stream after attention.

        If a norm follows, it is the stream before attention, and what the groups give together.
        """

        def one_group(j, sum_BTD):
            group, _ = self._group(j, x_BTD, inputs)
            out_BTHd, _ = group.attend(group.project(x_BTD))

            def one_tile(i, sum_BTD):
                output_BtD = group.output(i, group.tiles.take(out_BTHd, i), group.trainable)
                return group.tiles.put(sum_BTD, group.tiles.take(sum_BTD, i) + output_BtD, i)

            return group.tiles.loop(one_tile, sum_BTD)

        if self.parts.normalizes_attention:
            return [x_BTD, lax.fori_loop(0, self.groups, one_group, jnp.zeros_like(x_BTD))]
        return [lax.fori_loop(0, self.groups, one_group, x_BTD)]

    def _group(
        self, j: jax.Array, x_BTD: jax.Array, inputs: LayerInputs
    ) -> tuple[PositionWise, Callable[[Leaves], Leaves]]:
        """(group j of the heads as a layer, a function from its gradients to the whole layer's)."""

        def sliced(trainable: Leaves) -> tuple[Parameters, LayerParts]:
            params = dataclasses.replace(inputs.params, trainable=trainable)
            return params.mapped(lambda tree: self.parts.heads(tree, j, self.groups))

        params, parts = sliced(inputs.params.trainable)
        _, pull_back = jax.vjp(lambda trainable: sliced(trainable)[0].trainable, inputs.params.trainable)

        def whole(gradients: Leaves) -> Leaves:
            return pull_back([g.astype(x.dtype) for g, x in zip(gradients, params.trainable, strict=True)])[0]

        return self._over_tiles(parts, x_BTD, inputs._replace(params=params)), whole

    def _over_tiles(self, parts: LayerParts, x_BTD: jax.Array, inputs: LayerInputs) -> PositionWise:
        return PositionWise(parts, inputs, Tiles.of(x_BTD.shape[1], self.tile), self.attention)


def _rest(layer: PositionWise, i, streams: list[jax.Array], load: Load, trainable: Leaves) -> tuple[jax.Array, Load]:
    """(the layer's output in tile i, the load), from the streams of `_after_attention`."""
    *before, last_BtD = streams
    middle_BtD = layer.add_attention(before[0], last_BtD, trainable) if before else last_BtD
    return layer.feed_forward(i, middle_BtD, load, trainable)


def _group_gradients(group: PositionWise, x_BTD, doutput_BTD, dx_BTD) -> tuple[jax.Array, Leaves]:
    """(dx plus the contribution of this group's heads, gradients of the group's parameters)."""
    tiles, qkv = group.tiles, group.project(x_BTD)
    out_BTHd, lse = group.attend(qkv)

    def one_tile(i, carry):
        out_BTHd, delta_BHT, gradients = carry
        out_BtHd = tiles.take(out_BTHd, i)
        _, pull_back = jax.vjp(lambda out, trainable: group.output(i, out, trainable), out_BtHd, group.trainable)
        dout_BtHd, own = pull_back(tiles.take(doutput_BTD, i))
        delta_BHt = delta_of(out_BtHd, dout_BtHd)
        return (
            tiles.put(out_BTHd, dout_BtHd, i),
            tiles.put(delta_BHT, delta_BHt, i, axis=2),
            added(gradients, own),
        )

    delta_BHT = jnp.zeros((out_BTHd.shape[0], out_BTHd.shape[2], out_BTHd.shape[1]), jnp.float32)
    start = out_BTHd, delta_BHT, group.inputs.params.zeros()
    dout_BTHd, delta_BHT, gradients = tiles.loop(one_tile, start)
    dqkv, gradients = group.add_attention_gradients(qkv, lse, dout_BTHd, delta_BHT, gradients)
    return group.add_projection_gradients(x_BTD, dqkv, dx_BTD, gradients)
