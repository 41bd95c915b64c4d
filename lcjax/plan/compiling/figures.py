"""The figures of a compiled step that a plan reports."""

from __future__ import annotations

import dataclasses
from typing import Any

from lcjax.model import ModelSettings
from lcjax.plan.compiling.buffers import Buffer, largest_buffers
from lcjax.plan.compiling.collectives import Collectives, collectives
from lcjax.plan.compiling.compile import CompiledStep, compile_step
from lcjax.plan.compiling.compile_cache import cached_result
from lcjax.plan.compiling.memory import Memory
from lcjax.plan.workload import Workload

_BUFFERS = 12


@dataclasses.dataclass(frozen=True)
class Figures:
    """Memory, the largest buffers at the peak, the kernels by name, and collective operations."""

    memory: Memory
    buffers: tuple[Buffer, ...]
    kernels: dict[str, int]
    collectives: tuple[Collectives, ...] = ()

    @classmethod
    def of(cls, step: CompiledStep) -> Figures:
        """The figures of a compiled step."""
        buffers = largest_buffers(step.live_ranges, step.program, _BUFFERS)
        return cls(step.memory, tuple(buffers), dict(step.program.kernels()), collectives(step.program))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Figures:
        """The inverse of `dataclasses.asdict`."""
        buffers = tuple(Buffer(**buffer) for buffer in content["buffers"])
        found = tuple(Collectives(**row) for row in content["collectives"])
        return cls(Memory(**content["memory"]), buffers, content["kernels"], found)


def compiled_figures(workload: Workload, settings: ModelSettings) -> Figures:
    """The figures of a step, from the cache or from a compilation.

    Raises:
      InputError: as `compile_step`.
    """
    return cached_result(
        _cache_inputs(workload, settings), Figures.from_json, lambda: Figures.of(compile_step(workload, settings))
    )


def _cache_inputs(workload: Workload, settings: ModelSettings) -> dict[str, Any]:
    tokens = settings.max_seq_length
    return {
        "workload": [
            workload.gpu,
            workload.gpus,
            workload.hosts,
            workload.quantize,
            workload.lora_r,
            workload.target_modules,
            workload.optimizer_memory,
            repr(workload.config),
        ],
        "settings": [tokens, repr(settings)],
    }
