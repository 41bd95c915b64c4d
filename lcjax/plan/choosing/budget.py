"""The memory that a step may use: on this machine's GPU, or on one to plan for."""

from __future__ import annotations

import dataclasses

import jax

from lcjax.memory.allocators import host_limit_bytes
from lcjax.parallel.placement import this_device
from lcjax.plan.compiling.memory import GIB, Memory, device_limit_bytes


@dataclasses.dataclass(frozen=True)
class Budget:
    """Bytes of device memory and of pinned host memory; `host` None means no limit."""

    device: int
    host: int | None = None

    def device_load(self, memory: Memory) -> float:
        """The fraction of the device's memory that a step uses; above 1 it does not fit."""
        return memory.device_bytes / self.device

    def host_load(self, memory: Memory) -> float:
        """The fraction of the host memory that a step uses; 0 if that memory is unlimited."""
        return memory.host_bytes / self.host if self.host else 0.0

    def holds(self, memory: Memory) -> bool:
        """Whether a step fits."""
        return memory.device_bytes <= self.device and self.holds_on_host(memory.host_bytes)

    def holds_on_host(self, pinned_bytes: int) -> bool:
        """Whether `pinned_bytes` bytes of host memory may be pinned."""
        return self.host is None or pinned_bytes <= self.host


def budget_here() -> Budget | None:
    """The memory that a GPU of this process may use; None without one, where no limit is fixed.

    The GPUs of a process have equal parts of the host memory that it may pin.
    """
    device = this_device()
    statistics = device.memory_stats() if device.platform == "gpu" else None
    return Budget(statistics["bytes_limit"], host_limit_bytes() // jax.local_device_count()) if statistics else None


def budget_of(gpu: str, vram_gb: float | None = None, host_gb: float | None = None) -> Budget:
    """The memory of a GPU of that name, on a host where `host_gb` GiB may be pinned.

    If `vram_gb` is given, the GPU is one of the same kind that is sold with so many GB.

    Raises:
      InputError: an unknown GPU, or a `vram_gb` no larger than the margin.
    """
    return Budget(device_limit_bytes(gpu, vram_gb), None if host_gb is None else int(host_gb * GIB))
