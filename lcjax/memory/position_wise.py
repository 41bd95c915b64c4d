"""What both forms of a layer compute tile by tile, each part with its own derivative.

Shapes: B batch, T tokens, t tokens of a tile, D hidden size, H query heads, K key/value heads, d
head_dim.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lcjax.memory.parts import LayerInputs, LayerParts, Load
from lcjax.memory.tiles import Tiles
from lcjax.ops.attention.passes import Passes
from lcjax.ops.dropout import DropoutKey

Tree = Any
Leaves = list[jax.Array]


@dataclasses.dataclass(frozen=True)
class PositionWise:
    """A layer's parts over tiles of a sequence, and its attention over the whole of it."""

    parts: LayerParts
    inputs: LayerInputs
    tiles: Tiles
    attention: Passes

    @property
    def trainable(self) -> Leaves:
        return self.inputs.params.trainable

    def before(self, i: Any, x_BtD: jax.Array, trainable: Leaves) -> tuple[jax.Array, ...]:
        """Queries, keys and values of tile i."""
        positions_Bt = self.tiles.take(self.inputs.context.positions_BT, i)
        context = dataclasses.replace(self.inputs.context, positions_BT=positions_Bt)
        return self.parts.before_attention(self.inputs.params.joined(trainable), x_BtD, context, self._key(i, 0))

    def sinks(self, trainable: Leaves) -> jax.Array | None:
        """The logits that join the softmax of each head."""
        return self.parts.sinks(self.inputs.params.joined(trainable))

    def output(self, i: Any, out_BtHd: jax.Array, trainable: Leaves) -> jax.Array:
        """The projection of attention's output in tile i."""
        return self.parts.attention_output(self.inputs.params.joined(trainable), out_BtHd, self._key(i, 1))

    def add_attention(self, x_BtD: jax.Array, output_BtD: jax.Array, trainable: Leaves) -> jax.Array:
        """The residual stream after attention."""
        return self.parts.add_attention(self.inputs.params.joined(trainable), x_BtD, output_BtD)

    def feed_forward(self, i: Any, x_BtD: jax.Array, load: Load, trainable: Leaves) -> tuple[jax.Array, Load]:
        """(the residual stream after the MLP, the load of experts with that of tile i)."""
        counted_BT = self.inputs.context.counted_BT
        counted_Bt = None if counted_BT is None else self.tiles.take(counted_BT, i)
        return self.parts.feed_forward(self.inputs.params.joined(trainable), x_BtD, self._key(i, 2), load, counted_Bt)

    def project(self, x_BTD: jax.Array) -> tuple[jax.Array, ...]:
        """Queries, keys and values of the sequence."""

        def one_tile(i, qkv):
            parts = self.before(i, self.tiles.take(x_BTD, i), self.trainable)
            return tuple(self.tiles.put(whole, part, i) for whole, part in zip(qkv, parts, strict=True))

        shapes = jax.eval_shape(lambda x: self.before(0, self.tiles.take(x, 0), self.trainable), x_BTD)
        whole = tuple(jnp.zeros((s.shape[0], x_BTD.shape[1], *s.shape[2:]), s.dtype) for s in shapes)
        return self.tiles.loop(one_tile, whole)

    def attend(self, qkv: tuple[jax.Array, ...]) -> tuple[jax.Array, Any]:
        """(out, log-sum-exp); out may reuse the queries' memory."""
        context = self.inputs.context
        return context.by_view(self.attention.forward, *qkv, self.sinks(self.trainable), context.segment_ids_BT)

    def add_attention_gradients(
        self, qkv, lse: Any, dout_BTHd: jax.Array, delta_BHT: jax.Array, gradients: Leaves
    ) -> tuple[list[jax.Array], Leaves]:
        """([dq, dk, dv], gradients plus those of sinks); dq may reuse the queries' memory."""
        context = self.inputs.context
        sinks_H, pull_back = jax.vjp(self.sinks, self.trainable)

        def backward(qkv, sinks_H, ids_BT, lse, dout_BTHd, delta_BHT, sees):
            q_BTHd, k_BTKd, v_BTKd = qkv
            return self.attention.backward(q_BTHd, k_BTKd, v_BTKd, sinks_H, ids_BT, sees, lse, dout_BTHd, delta_BHT)

        *dqkv, dsinks_H = context.by_view(backward, qkv, sinks_H, context.segment_ids_BT, lse, dout_BTHd, delta_BHT)
        return dqkv, gradients if sinks_H is None else added(gradients, *pull_back(dsinks_H))

    def add_projection_gradients(self, x_BTD, dqkv: list[jax.Array], dx_BTD, gradients: Leaves) -> tuple:
        """(dx, gradients) plus the contributions of queries, keys and values."""

        def one_tile(i, carry):
            dx_BTD, gradients = carry
            _, pull_back = jax.vjp(
                lambda x, trainable: self.before(i, x, trainable), self.tiles.take(x_BTD, i), self.trainable
            )
            dx_BtD, own = pull_back(tuple(self.tiles.take(x, i) for x in dqkv))
            return self.tiles.put(dx_BTD, self.tiles.take(dx_BTD, i) + dx_BtD, i), added(gradients, own)

        return self.tiles.loop(one_tile, (dx_BTD, gradients))

    def _key(self, i: Any, part: int) -> DropoutKey | None:
        """The dropout key of one part of a tile, the same in both passes."""
        if self.inputs.dropout_key is None:
            return None
        places_t = self.tiles.take(self.inputs.context.places_T, i, axis=0)
        return DropoutKey(self.inputs.dropout_key, places_t).split(3)[part]


def delta_of(out_BtHd: jax.Array, dout_BtHd: jax.Array) -> jax.Array:
    """`sum over d of out dout`, float32 [B, H, t]."""
    return jnp.swapaxes((out_BtHd.astype(jnp.float32) * dout_BtHd.astype(jnp.float32)).sum(axis=-1), 1, 2)


def added(sums: Leaves, new: Leaves) -> Leaves:
    """Sums of gradients, in the sums' dtype."""
    return [total + x.astype(total.dtype) for total, x in zip(sums, new, strict=True)]
