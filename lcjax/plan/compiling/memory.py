"""Bytes of a compiled step, and the bytes that a GPU has for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from lcjax.config import LlamaConfig
from lcjax.errors import InputError
from lcjax.model import ModelSettings
from lcjax.ops.attention.registry import backend_of
from lcjax.optim.layerwise import host_bytes
from lcjax.parallel.memories import is_on_host
from lcjax.plan.compiling.aot import gpu_memory_bytes
from lcjax.plan.compiling.parameters import tree_bytes

GIB = 2**30
MARGIN_BYTES = GIB
"""What a step cannot have: the CUDA context and its modules, which take about half of it, and the allocator's gaps."""

# Of the gigabytes on the box, a driver reports this much: 23.5 GiB of 24 (RTX 4090), 39.4 of 40 (A100).
_REPORTED_OF_SOLD = 0.98


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one step. `weights` are frozen; `state` is what the optimizer changes: adapter, or all weights, and moments; not
    counting what of them is in host memory, which is in `host_bytes`."""

    weights_bytes: int
    state_bytes: int
    argument_bytes: int
    temp_bytes: int
    output_bytes: int
    host_bytes: int
    host_state_bytes: int = 0
    """Of `host_bytes`, what of the optimizer's state stays there between steps."""
    host_weights_bytes: int = 0
    """Of `host_bytes`, frozen weights that stay there."""

    @property
    def device_bytes(self) -> int:
        """All that lies on the GPU while a step runs."""
        return self.argument_bytes + self.temp_bytes + self.output_bytes


def measure(compiled: jax.stages.Compiled, state: Any, frozen: Any, scratch_bytes: int = 0) -> Memory:
    """The compiler's figures. Outputs that take the memory of a donated argument are counted there.

    `scratch_bytes` is what libraries allocate for themselves while the step runs (see `attention_scratch_bytes`); temporaries, too.
    """
    on_host, weights_on_host = host_bytes(state), tree_bytes(list(filter(is_on_host, jax.tree.leaves(frozen))))
    analysis = compiled.memory_analysis()
    assert analysis is not None, "every CUDA program has one"
    return Memory(
        weights_bytes=tree_bytes(frozen) - weights_on_host,
        state_bytes=tree_bytes(state) - on_host,
        argument_bytes=analysis.argument_size_in_bytes,
        temp_bytes=analysis.temp_size_in_bytes + scratch_bytes,
        output_bytes=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        host_bytes=analysis.host_temp_size_in_bytes
        + analysis.host_argument_size_in_bytes
        + analysis.host_output_size_in_bytes
        - analysis.host_alias_size_in_bytes,
        host_state_bytes=on_host,
        host_weights_bytes=weights_on_host,
    )


def attention_scratch_bytes(config: LlamaConfig, settings: ModelSettings, sequences: int = 1) -> int:
    """Bytes beside the compiler's that attention takes in a step of so many sequences of `settings.max_seq_length` tokens."""
    heads = config.num_attention_heads, config.num_key_value_heads
    scratch_bytes = backend_of(settings.attention).scratch_bytes
    return scratch_bytes(*heads, config.head_dim, sequences * settings.max_seq_length)


def gib(count: int) -> str:
    """Bytes in GiB, for people."""
    return f"{count / GIB:,.1f} GiB"


def device_limit_bytes(gpu: str, vram_gb: float | None = None) -> int:
    """What a step may take: the GPU's memory, or that of a GPU sold with `vram_gb` GiB where this is less, less the margin.

    Raises:
      InputError: an unknown GPU, or a `vram_gb` that leaves nothing.
    """
    limit = gpu_memory_bytes(gpu)
    if vram_gb is not None:
        limit = min(limit, int(vram_gb * GIB * _REPORTED_OF_SOLD))
    if limit <= MARGIN_BYTES:
        raise InputError(f"--vram-gb {vram_gb} leaves nothing beside the margin of {MARGIN_BYTES / GIB:.1f} GiB")
    return limit - MARGIN_BYTES
