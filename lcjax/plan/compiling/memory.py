"""The memory of a compiled step, and the memory that a GPU has for it."""

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
"""Bytes of the GPU that a step cannot use.

About half of them are for the CUDA context and its modules, the rest for the allocator's gaps.
"""

# The fraction of the advertised gigabytes that a driver reports: 23.5 GiB of 24 (RTX 4090), 39.4 of
# 40 (A100).
_REPORTED_OF_SOLD = 0.98


@dataclasses.dataclass(frozen=True)
class Memory:
    """The bytes of one step: on the device, unless the name says otherwise.

    Attributes:
      weights_bytes: frozen weights.
      state_bytes: what the optimizer changes: the adapter or all weights, and their moments.
      argument_bytes: all arguments, those two and the batch.
      temp_bytes: temporaries, including the scratch memory of attention.
      output_bytes: outputs that do not reuse the memory of an argument.
      host_bytes: all pinned host memory.
      host_state_bytes: the part of `host_bytes` for optimizer state that stays there between steps.
      host_weights_bytes: the part of `host_bytes` for frozen weights that stay there.
    """

    weights_bytes: int
    state_bytes: int
    argument_bytes: int
    temp_bytes: int
    output_bytes: int
    host_bytes: int
    host_state_bytes: int = 0
    host_weights_bytes: int = 0

    @property
    def device_bytes(self) -> int:
        """The memory of the GPU that is in use while a step runs."""
        return self.argument_bytes + self.temp_bytes + self.output_bytes


def measure(compiled: jax.stages.Compiled, state: Any, frozen: Any, scratch_bytes: int = 0) -> Memory:
    """The memory of a compiled step, from the compiler's analysis.

    Outputs that reuse the memory of a donated argument count as arguments. `scratch_bytes` is what
    libraries allocate while the step runs (see `attention_scratch_bytes`); it counts as temporary.
    """
    on_host, weights_on_host = host_bytes(state), tree_bytes(list(filter(is_on_host, jax.tree.leaves(frozen))))
    analysis = compiled.memory_analysis()
    assert analysis is not None, "every CUDA program has an analysis"
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
    """Bytes that attention allocates in addition to what the compiler reports.

    They are those of a step over `sequences` sequences of `settings.max_seq_length` tokens.
    """
    heads = config.num_attention_heads, config.num_key_value_heads
    scratch_bytes = backend_of(settings.execution.attention).scratch_bytes
    # Devices that exchange tokens for heads have fewer heads of more tokens: as many elements.
    return scratch_bytes(*heads, config.head_dim, sequences * settings.local_tokens)


def gib(count: int) -> str:
    """`count` bytes as text in GiB."""
    return f"{count / GIB:,.1f} GiB"


def device_limit_bytes(gpu: str, vram_gb: float | None = None) -> int:
    """The bytes that a step may use on a GPU: its memory minus the margin.

    If `vram_gb` is given, the memory is at most that of a GPU sold with so many GB.

    Raises:
      InputError: an unknown GPU, or a `vram_gb` no larger than the margin.
    """
    limit = gpu_memory_bytes(gpu)
    if vram_gb is not None:
        limit = min(limit, int(vram_gb * GIB * _REPORTED_OF_SOLD))
    if limit <= MARGIN_BYTES:
        raise InputError(f"--vram-gb {vram_gb} leaves no memory after the margin of {MARGIN_BYTES / GIB:.1f} GiB")
    return limit - MARGIN_BYTES
