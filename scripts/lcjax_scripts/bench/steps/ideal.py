"""The ideal time of a step: its FLOPs at the speed of a large matrix product."""

from __future__ import annotations

from collections.abc import Iterable

from lcjax.config import LlamaConfig
from lcjax.plan.choosing.flops import step_flops
from lcjax_scripts.bench.steps.shape import Shape

# The matrix products of each kernel. Each one computes q k^T again.
_ATTENTION_PRODUCTS = {"attention_forward": 2, "attention_dq": 3, "attention_dkv": 4}
_KINDS = {"attention_forward": "attention forward", "attention_dq": "attention dq", "attention_dkv": "attention dk/dv"}


def seconds(
    config: LlamaConfig, shape: Shape, tokens: int, kernels: Iterable[tuple[str, tuple[int, float]]], ceiling: float
) -> dict[str, float]:
    """Returns the seconds by kind of kernel at `ceiling` TFLOP/s.

    For attention, the number of kernel launches counts. The products of a layer run once forward,
    once backward, and once more if the forward pass is recomputed.
    """
    counts = {name: count for name, (count, _) in kernels if name in _KINDS}
    # Two operations for half of the pairs.
    product = tokens * tokens * config.num_attention_heads * config.head_dim
    rate = ceiling * 1e12
    result = {_KINDS[name]: count * _ATTENTION_PRODUCTS[name] * product / rate for name, count in counts.items()}
    flops = step_flops(config, tokens, shape.lora_r)
    again = 1 if counts.get("attention_forward", 0) > config.num_hidden_layers else 0
    passes = 2 if shape.lora_r else 3
    return result | {"products": ((flops.linear + flops.adapter) * (1 + again / passes) + flops.head) / rate}
