"""The memory that a step may take: of the GPU that is here, or of one to plan for."""

from __future__ import annotations

import dataclasses

from lcjax.memory.allocators import host_limit_bytes
from lcjax.parallel.placement import this_device
from lcjax.plan.compiling.memory import GIB, Memory, device_limit_bytes


@dataclasses.dataclass(frozen=True)
class Budget:
    """Bytes on the device and of pinned host memory; `host` None: any amount."""

    device: int
    host: int | None = None

    def device_load(self, memory: Memory) -> float:
        """The share of the device that a step uses; more than 1 does not fit."""
        return memory.device_bytes / self.device

    def host_load(self, memory: Memory) -> float:
        """The share of the host memory that a step uses; 0 where any amount may be pinned."""
        return memory.host_bytes / self.host if self.host else 0.0

    def holds(self, memory: Memory) -> bool:
        """Whether a step fits."""
        return memory.device_bytes <= self.device and self.holds_on_host(memory.host_bytes)

    def holds_on_host(self, pinned_bytes: int) -> bool:
        """Whether so many bytes may be pinned."""
        return self.host is None or pinned_bytes <= self.host


def budget_here() -> Budget | None:
    """What this process may take; None without a GPU, where memory is the operating system's to give."""
    device = this_device()
    statistics = device.memory_stats() if device.platform == "gpu" else None
    return Budget(statistics["bytes_limit"], host_limit_bytes()) if statistics else None


def budget_of(gpu: str, vram_gb: float | None = None, host_gb: float | None = None) -> Budget:
    """What a GPU of that name has, or one sold with `vram_gb` GB, on a host where `host_gb` GiB may be pinned.

    Raises:
      InputError: an unknown GPU, or a `vram_gb` that leaves nothing.
    """
    return Budget(device_limit_bytes(gpu, vram_gb), None if host_gb is None else int(host_gb * GIB))
