"""A decoder layer: attention and MLP, each added to the residual stream, and their norms.

Shapes: B batch, T tokens, t tokens of a tile, D hidden size, H query heads, K key/value heads, d
head_dim.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.config.families import Norms
from lcjax.model.attention import SelfAttention, attend
from lcjax.model.context import Context
from lcjax.model.mlp import new_mlp
from lcjax.model.norm import RMSNorm
from lcjax.ops.dropout import DropoutKey, split_key
from lcjax.ops.grouped import ExpertLoad
from lcjax.ops.residuals import LAYER_INPUT, MIDDLE, PROJECTION, name_residual

Tree = dict[str, Any]


class DecoderLayer(nnx.Module):
    """Attention and MLP, each added to the residual stream, with norms before or after them.

    It has three parts. The first and the last work position by position, and `lcjax.memory` runs
    them over tiles of the sequence.
    """

    def __init__(self, tree: Tree, config: LlamaConfig, lora: LoraConfig | None):
        self.norms = config.family.norms
        for name in self.norms.of_layer:
            setattr(self, name, RMSNorm(tree[name], config))
        self.self_attn = SelfAttention(tree["self_attn"], config, lora)
        self.mlp = new_mlp(tree["mlp"], config, lora)

    def __call__(
        self, x_BTD: jax.Array, context: Context, dropout_key: DropoutKey | None, load: ExpertLoad | None = None
    ) -> tuple[jax.Array, ExpertLoad | None]:
        """(the residual stream after the layer, the load of experts with its own, if any)."""
        before_key, output_key, mlp_key = split_key(dropout_key, 3)
        x_BTD = name_residual(x_BTD, LAYER_INPUT)
        q_BTHd, k_BTKd, v_BTKd = self.before_attention(x_BTD, context, before_key)
        out_BTHd = attend(q_BTHd, k_BTKd, v_BTKd, context, sinks_H=self.self_attn.sinks_H)
        x_BTD = self._middle(x_BTD, out_BTHd, output_key)
        return self.feed_forward(x_BTD, mlp_key, load, context.counted_BT)

    def before_attention(
        self, x_BTD: jax.Array, context: Context, dropout_key: DropoutKey | None
    ) -> tuple[jax.Array, ...]:
        """Queries, keys and values of part of the residual stream; `context` has its positions."""
        return self.self_attn.project(self._before(self.norms.before_attention, x_BTD), context, dropout_key)

    def after_attention(self, x_BTD: jax.Array, out_BTHd: jax.Array) -> jax.Array:
        """The layer's output, from residual stream and attention's output at the same positions.

        It has no dropout.
        """
        return self.feed_forward(self._middle(x_BTD, out_BTHd, None), None)[0]

    def add_attention(self, x_BTD: jax.Array, output_BTD: jax.Array) -> jax.Array:
        """The residual stream after attention, from the sum of what its heads give."""
        return x_BTD + self._after(self.norms.after_attention, output_BTD)

    def feed_forward(
        self,
        x_BTD: jax.Array,
        dropout_key: DropoutKey | None,
        load: ExpertLoad | None = None,
        counted_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, ExpertLoad | None]:
        """(the residual stream after the MLP, the load of experts with the layer's own, if any)."""
        result_BTD, load = self.mlp(self._before(self.norms.before_mlp, x_BTD), dropout_key, load, counted_BT)
        return x_BTD + self._after(self.norms.after_mlp, result_BTD), load

    def _middle(self, x_BTD: jax.Array, out_BTHd: jax.Array, dropout_key: DropoutKey | None) -> jax.Array:
        """The residual stream after attention, from attention's output."""
        return name_residual(self.add_attention(x_BTD, self.self_attn.output(out_BTHd, dropout_key)), MIDDLE)

    def _before(self, name: str | None, x_BTD: jax.Array) -> jax.Array:
        """The residual stream, normalized if the layer has this norm."""
        return x_BTD if name is None else getattr(self, name)(x_BTD)

    def _after(self, name: str | None, x_BTD: jax.Array) -> jax.Array:
        """The result of a projection, normalized if the layer has this norm."""
        return x_BTD if name is None else getattr(self, name)(name_residual(x_BTD, PROJECTION))


@dataclasses.dataclass(frozen=True)
class LayerFunctions:
    """A layer as functions of its parameters, for the memory engine."""

    structure: nnx.GraphDef
    norms: Norms

    @property
    def normalizes_attention(self) -> bool:
        return self.norms.after_attention is not None

    def before_attention(self, params: Any, x_BtD: jax.Array, context: Context, key: DropoutKey | None):
        return nnx.merge(self.structure, params).before_attention(x_BtD, context, key)

    def sinks(self, params: Any) -> jax.Array | None:
        return nnx.merge(self.structure, params).self_attn.sinks_H

    def attention_output(self, params: Any, out_BtHd: jax.Array, key: DropoutKey | None):
        return nnx.merge(self.structure, params).self_attn.output(out_BtHd, key)

    def add_attention(self, params: Any, x_BtD: jax.Array, output_BtD: jax.Array):
        return nnx.merge(self.structure, params).add_attention(x_BtD, output_BtD)

    def feed_forward(
        self,
        params: Any,
        x_BtD: jax.Array,
        key: DropoutKey | None,
        load: ExpertLoad | None,
        counted_Bt: jax.Array | None,
    ):
        return nnx.merge(self.structure, params).feed_forward(x_BtD, key, load, counted_Bt)

    def heads(self, params: Any, group: jax.Array, groups: int):
        layer = nnx.merge(self.structure, params)
        layer.self_attn = layer.self_attn.heads(group, groups)
        structure, params = nnx.split(layer)
        return params, LayerFunctions(structure, self.norms)
