"""A gated MLP for all tokens.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.model.linear import Linear, outputs_of
from lcjax.model.mlp.activations import ACTIVATIONS
from lcjax.ops.dropout import DropoutKey, split_key
from lcjax.ops.grouped import ExpertLoad
from lcjax.ops.residuals import PROJECTION, name_residual

Tree = dict[str, Any]


class MLP(nnx.Module):
    """A gated MLP: `down(activation(gate(x)) * up(x))`. Source: Shazeer, arXiv 2002.05202."""

    def __init__(self, tree: Tree, config: LlamaConfig, lora: LoraConfig | None):
        self.activation = config.family.activation
        # A family has a map for each of gate and up, or one map for both.
        self.maps = ("gate_up_proj",) if "gate_up_proj" in tree else ("gate_proj", "up_proj")
        for name in self.maps:
            setattr(self, name, Linear(tree[name], lora))
        self.size = config.intermediate_size
        self.down_proj = Linear(tree["down_proj"], lora)

    def __call__(
        self,
        x_BTD: jax.Array,
        dropout_key: DropoutKey | None,
        load: ExpertLoad | None = None,
        counted_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, ExpertLoad | None]:
        """(the result, the load as it is)."""
        maps = [getattr(self, name) for name in self.maps]
        *keys, down_key = split_key(dropout_key, len(maps) + 1)
        outputs = list(outputs_of(maps, x_BTD, keys, (self.size, self.size)))
        gate, up = (name_residual(x, PROJECTION) for x in outputs)
        return self.down_proj(ACTIVATIONS[self.activation](gate) * up, down_key), load
