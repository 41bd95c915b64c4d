"""A mixture of experts: a router, and gated MLPs. Each token has some of them.

Shapes: B batch, T tokens, N = B T tokens of all rows, D hidden size, E experts, C choices of a
token, R rows of `lcjax.ops.grouped.routing`, F the width of an expert.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.model.mlp.activations import ACTIVATIONS
from lcjax.model.mlp.grouped_linear import GroupedLinear
from lcjax.ops.dropout import DropoutKey
from lcjax.ops.grouped import ExpertLoad, Routing, collect, dispatch, route
from lcjax.ops.residuals import PROJECTION, name_residual

Tree = dict[str, Any]


class Router(nnx.Module):
    """Chooses the experts with the largest logits `W x + b`. It computes in float32.

    Their weights are the softmax of the logits over all experts, or over the chosen ones.
    """

    def __init__(self, tree: Tree, config: LlamaConfig):
        self.weight = nnx.Param(tree["weight"])
        self.bias = nnx.Param(tree["bias"]) if "bias" in tree else None
        self.experts = config.experts

    def __call__(self, x_ND: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(weights float32 [N, C], experts int32 [N, C], logits float32 [N, E]) of each token.

        The largest weight is first.
        """
        product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32, precision="highest")
        logits_NE = product("nd,ed->ne", x_ND, self.weight[...])
        if self.bias is not None:
            logits_NE = logits_NE + self.bias[...][None].astype(jnp.float32)
        logits_NC, expert_NC = lax.top_k(logits_NE, self.experts.per_token)
        among_NX = logits_NC if self.experts.sums_to_one else logits_NE
        weight_NC = jnp.exp(logits_NC - jax.nn.logsumexp(among_NX, axis=-1, keepdims=True))
        return weight_NC, expert_NC, logits_NE


class Experts(nnx.Module):
    """The gated MLPs of all experts: `down_e(gated(gate_e(x), up_e(x)))` for rows x."""

    def __init__(self, tree: Tree, config: LlamaConfig, lora: LoraConfig | None):
        self.activation, self.settings = config.family.activation, config.experts
        # A family has a map for each of gate and up, or one map whose outputs alternate.
        self.maps = ("gate_up_proj",) if "gate_up_proj" in tree else ("gate_proj", "up_proj")
        for name in self.maps:
            setattr(self, name, GroupedLinear(tree[name], lora))
        self.down_proj = GroupedLinear(tree["down_proj"], lora)

    def __call__(self, x_RD: jax.Array, routing: Routing) -> jax.Array:
        outputs = [name_residual(getattr(self, name)(x_RD, routing), PROJECTION) for name in self.maps]
        gate_RF, up_RF = outputs if len(outputs) == 2 else (outputs[0][:, ::2], outputs[0][:, 1::2])
        return self.down_proj(self._gated(gate_RF, up_RF), routing)

    def _gated(self, gate: jax.Array, up: jax.Array) -> jax.Array:
        """`activation(gate) * up`, or with a limit as in `lcjax.config.families.experts`."""
        if (limit := self.settings.limit) is None:
            return ACTIVATIONS[self.activation](gate) * up
        gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
        return (up + 1) * gate * jax.nn.sigmoid(self.settings.sharpness * gate)


class MixtureOfExperts(nnx.Module):
    """The sum of the results of a token's experts, with the router's weights.

    Source: Shazeer et al., arXiv 1701.06538; Fedus et al., arXiv 2101.03961.
    """

    def __init__(self, tree: Tree, config: LlamaConfig, lora: LoraConfig | None):
        self.router = Router(tree["router"], config)
        self.experts = Experts(tree["experts"], config, lora)
        self.count = config.experts.count

    def __call__(
        self,
        x_BTD: jax.Array,
        dropout_key: DropoutKey | None,
        load: ExpertLoad | None = None,
        counted_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, ExpertLoad | None]:
        """(the result, the load with these tokens, or None if none is given).

        Adapters of experts have no dropout, so the key is not used.
        """
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        weight_NC, expert_NC, logits_NE = self.router(x_ND)
        if load is not None and counted_BT is not None:
            load = load.plus(logits_NE, expert_NC, counted_BT.reshape(-1))
        routing = route(expert_NC, self.count)
        y_NCD = collect(self.experts(dispatch(x_ND, routing), routing), routing)
        y_ND = jnp.einsum("ncd,nc->nd", y_NCD, weight_NC, preferred_element_type=jnp.float32, precision="highest")
        return y_ND.astype(x_BTD.dtype).reshape(x_BTD.shape), load
