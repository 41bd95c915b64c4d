"""The FLOPs of a training step, and the time that a GPU takes for them at a given utilization.

Model FLOPs are those that the mathematics needs; each multiply-add counts as two. Recomputation,
norms, RoPE and the optimizer are not counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection

from lcjax.config import LlamaConfig

# TFLOP/s of dense bfloat16 products with float32 sums, from NVIDIA's data sheets and architecture
# white papers.
PEAK_BF16_TFLOPS = {
    "a100-40gb": 312.0,
    "a100-80gb": 312.0,
    "b200": 2250.0,
    "h100-80gb": 989.4,
    "h200": 989.4,
    "l40s": 362.05,
    "rtx-pro-6000": 503.8,
    "rtx3090": 71.0,
    "rtx4090": 165.2,
}

UTILIZATION = 0.25
"""Model FLOP/s as a fraction of the peak.

A QLoRA step of 8B at 344,064 tokens reached 249 of 989 TFLOP/s on an H100.
"""


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs of the forward and backward pass over one sequence, by the part of the model."""

    linear: int
    adapter: int
    attention: int
    head: int

    @property
    def total(self) -> int:
        return self.linear + self.adapter + self.attention + self.head

    def seconds(self, gpu: str, utilization: float = UTILIZATION) -> float:
        """The seconds of a step on one GPU at `utilization`, a fraction of its peak."""
        return self.total / (PEAK_BF16_TFLOPS[gpu] * 1e12 * utilization)


def step_flops(
    config: LlamaConfig, tokens: int, lora_r: int, target_modules: Collection[str] | None = None
) -> StepFlops:
    """The FLOPs of one document of `tokens` tokens; `lora_r` 0 means that every weight is trained.

    An adapter is on the linear maps that `target_modules` names, by default on all.

    A product with a weight of n elements takes 2 n FLOPs per token, and as many again for each
    gradient: always with respect to its input, and also to the weight if it is trained. Of experts,
    those that a token has are counted. Causal
    attention computes half of all pairs of tokens: `4 T^2 H d / 2` per layer, and 2.5 times that in
    the backward pass (five products instead of two). With a window of w tokens the pairs further
    apart, `(T - w)^2 / 2`, are not computed.

    Source: Narayanan et al., arXiv 2104.04473, appendix; attention's factor: Dao, arXiv 2307.08691,
    section 4.1.
    """
    products = [row for row in config.family.parameters if row.matmul]
    passes = 2 if lora_r else 3
    weights = sum(row.uses_per_token(config) * math.prod(row.shape(config)) for row in products if row.in_layers)
    adaptable = [
        row for row in config.family.adaptable.values() if target_modules is None or row.module in target_modules
    ]
    factors = sum(row.uses_per_token(config) * lora_r * sum(row.shape(config)) for row in adaptable)
    unseen = [0 if view.window is None else max(0, tokens - view.window) for view in config.views]
    pairs = sum(tokens * tokens - unseen[view] ** 2 for view in config.view_of_layer)
    return StepFlops(
        linear=passes * 2 * tokens * weights,
        adapter=3 * 2 * tokens * factors,
        attention=7 * pairs * config.num_attention_heads * config.head_dim,
        head=passes * 2 * tokens * sum(math.prod(row.shape(config)) for row in products if not row.in_layers),
    )
