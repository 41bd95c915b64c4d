"""The time that a step's arithmetic would take at the speed of a large product: what a perfect program needs."""

from __future__ import annotations

from collections.abc import Iterable

from lcjax.config import LlamaConfig
from lcjax.plan.flops import step_flops
from lcjax_scripts.bench.steps.shape import Shape

# Products in a pass of attention over half of all pairs of tokens: what each kernel must compute, q
# k^T again in each.
_ATTENTION_PRODUCTS = {"attention_forward": 2, "attention_dq": 3, "attention_dkv": 4}
_KINDS = {"attention_forward": "attention forward", "attention_dq": "attention dq", "attention_dkv": "attention dk/dv"}


def seconds(
    config: LlamaConfig, shape: Shape, tokens: int, kernels: Iterable[tuple[str, tuple[int, float]]], ceiling: float
) -> dict[str, float]:
    """Seconds by kind of kernel at `ceiling` TFLOP/s; those of attention by how often each kernel ran.

    A layer's products run once forward, once backward and, where every layer is computed again, once more.
    """
    counts = {name: count for name, (count, _) in kernels if name in _KINDS}
    product = tokens * tokens * config.num_attention_heads * config.head_dim  # two operations, half of the pairs
    rate = ceiling * 1e12
    result = {_KINDS[name]: count * _ATTENTION_PRODUCTS[name] * product / rate for name, count in counts.items()}
    flops = step_flops(config, tokens, shape.lora_r)
    again = 1 if counts.get("attention_forward", 0) > config.num_hidden_layers else 0
    passes = 2 if shape.lora_r else 3
    return result | {"products": ((flops.linear + flops.adapter) * (1 + again / passes) + flops.head) / rate}
