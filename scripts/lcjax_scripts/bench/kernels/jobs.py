"""Jobs of the kernel benchmark. A job is one implementation of one pass of one operation.

This module imports neither JAX nor torch, because the processes of both sides import it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

# Parts of an operation. The sweep of block sizes also measures single kernels of attention.
FORWARD, BACKWARD, BOTH = "forward", "backward", "both"
KERNELS = ("attention_forward", "attention_dq", "attention_dkv")

JAX_IMPLEMENTATIONS = ("pallas", "mosaic", "xla", "cudnn", "fa3", "tokamax", "mosaic_example", "pallas_example")
TORCH_IMPLEMENTATIONS = ("sdpa_fa2", "sdpa_cudnn", "triton", "liger")
IMPLEMENTATIONS = (*JAX_IMPLEMENTATIONS, *TORCH_IMPLEMENTATIONS)

# The implementations of each operation, in the order of measurement.
DEFAULTS = {
    "attention": (
        *("pallas", "mosaic", "triton", "sdpa_fa2", "sdpa_cudnn", "cudnn", "fa3", "tokamax"),
        *("mosaic_example", "pallas_example", "xla"),
    ),
    "rope": ("pallas", "xla", "triton", "liger"),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One measurement.

    `tile` is (query block, key block, warps, stages) of a single kernel, followed by the names of
    Pallas options that are on. None selects the default block sizes.
    """

    operation: str  # "attention" or "rope"
    part: str
    implementation: str
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    causal: bool = True
    batch: int = 1
    tile: tuple[Any, ...] | None = None

    @property
    def side(self) -> str:
        """The process that runs the job: "jax" or "torch"."""
        return "jax" if self.implementation in JAX_IMPLEMENTATIONS else "torch"

    @property
    def flops(self) -> float:
        """Floating-point operations.

        Attention has two products forward and five backward; causal attention counts half of each.
        RoPE has six operations per pair of elements.
        """
        if self.operation == "rope":
            pairs = self.batch * self.tokens * (self.heads + self.kv_heads) * self.head_dim / 2
            return 6 * pairs
        product = (
            2 * self.batch * self.heads * self.tokens * self.tokens * self.head_dim * (0.5 if self.causal else 1.0)
        )
        products = {FORWARD: 2, BACKWARD: 5, BOTH: 7, "attention_forward": 2, "attention_dq": 3, "attention_dkv": 4}
        return product * products[self.part]

    @property
    def bytes_moved(self) -> float:
        """The minimum memory traffic in bytes: operands are read once, results are written once."""
        size = 4 if self.dtype == "float32" else 2
        queries, keys = (
            self.batch * self.tokens * heads * self.head_dim * size for heads in (self.heads, self.kv_heads)
        )
        if self.operation == "rope":
            return 2 * (queries + keys)
        forward, backward = 2 * queries + 2 * keys, 4 * queries + 4 * keys
        return {FORWARD: forward, BACKWARD: backward, BOTH: forward + backward}.get(self.part, backward)


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a job.

    `milliseconds` is the median time of one run. `extra_bytes` is the peak device memory in
    addition to the inputs.
    """

    job: Job
    milliseconds: float | None
    extra_bytes: int | None
    error: str = ""

    @property
    def tflops(self) -> float | None:
        return self.job.flops / self.milliseconds / 1e9 if self.milliseconds else None

    @property
    def terabytes_a_second(self) -> float | None:
        return self.job.bytes_moved / self.milliseconds / 1e9 if self.milliseconds else None


def benchmark_jobs(
    sizes: Iterable[Job], operations: Sequence[str], parts: Sequence[str], implementations: Sequence[str] | None
) -> list[Job]:
    """Returns every implementation of every part, at the sizes of the given jobs.

    RoPE is measured in the forward pass only.
    """
    return [
        dataclasses.replace(size, operation=operation, part=part, implementation=implementation)
        for size in sizes
        for operation in operations
        for part in (parts if operation == "attention" else (FORWARD,))
        for implementation in DEFAULTS[operation]
        if implementations is None or implementation in implementations
    ]
