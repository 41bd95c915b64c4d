"""A linear map for each expert, quantized or not, with optional biases and low-rank adapters.

Shapes: R rows, each of one expert, E experts, O out, I in, K rank.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from lcjax.config import LoraConfig
from lcjax.ops import four_bits
from lcjax.ops.grouped import Routing, grouped_product, of_experts
from lcjax.ops.residuals import LOW_RANK, name_residual

Tree = dict[str, Any]


class GroupedLinear(nnx.Module):
    """`y_r = W_e x_r + b_e`, plus the adapter `scaling * B_e A_e x_r`, with e the expert of row r.

    If the weights are quantized, every call dequantizes them.
    """

    def __init__(self, tree: Tree, lora: LoraConfig | None = None):
        weight = tree["weight"]
        quantized = four_bits.is_quantized(weight)
        self.weight = nnx.Dict(jax.tree.map(nnx.Param, weight)) if quantized else nnx.Param(weight)
        self.bias = nnx.Param(tree["bias"]) if "bias" in tree else None
        self.lora_A = nnx.LoRAParam(tree["lora_A"]) if "lora_A" in tree else None
        self.lora_B = nnx.LoRAParam(tree["lora_B"]) if "lora_B" in tree else None
        self.lora = lora

    def __call__(self, x_RI: jax.Array, routing: Routing) -> jax.Array:
        """x [R, I] to [R, O], in x's dtype; products accumulate in float32."""
        y_RO = grouped_product(x_RI, self._weight_EOI(x_RI.dtype), routing)
        if self.bias is not None:
            y_RO = y_RO + of_experts(self.bias[...], routing)
        if self.lora is not None and self.lora_A is not None and self.lora_B is not None:
            low_rank_RK = grouped_product(x_RI, self.lora_A[...].astype(x_RI.dtype), routing)
            low_rank_RK = name_residual(low_rank_RK, LOW_RANK)
            scaled_RK = low_rank_RK * self.lora.scaling
            y_RO = y_RO + grouped_product(scaled_RK, self.lora_B[...].astype(x_RI.dtype), routing)
        return y_RO

    def _weight_EOI(self, dtype: Any) -> jax.Array:
        if not isinstance(self.weight, nnx.Dict):
            return self.weight[...]
        return four_bits.dequantize({name: leaf[...] for name, leaf in self.weight.items()}, dtype)
