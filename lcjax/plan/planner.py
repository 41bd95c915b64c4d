"""Plans: the step of a workload at some length, compiled, beside what its GPU and host have."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

from lcjax.plan.buffers import Buffer, largest_buffers
from lcjax.plan.compile import compile_step
from lcjax.plan.flops import UTILISATION, StepFlops, step_flops
from lcjax.plan.memory import GIB, Memory, device_limit_bytes
from lcjax.plan.search import LENGTH_STEP, largest_fitting
from lcjax.plan.settings import choose_settings, policy_lengths
from lcjax.plan.workload import Workload

LONGEST = 2**24
"""Tokens: RoPE's angles are exact for positions below it (see `lcjax.ops.rope`)."""

_BUFFERS = 12


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one step at one length takes, and whether it is there. `host_limit_bytes` is None where the host was not stated."""

    workload: Workload
    max_seq_length: int
    policy: str
    attention: str
    memory: Memory
    device_limit_bytes: int
    host_limit_bytes: int | None
    buffers: tuple[Buffer, ...]
    kernels: Counter[str]
    flops: StepFlops

    @property
    def device_load(self) -> float:
        """The GPU's share in use; more than 1 does not fit."""
        return self.memory.device_bytes / self.device_limit_bytes

    @property
    def host_load(self) -> float:
        """The share in use of the host's memory; 0 where the host was not stated."""
        return self.memory.host_bytes / self.host_limit_bytes if self.host_limit_bytes else 0.0

    @property
    def fits(self) -> bool:
        return max(self.device_load, self.host_load) <= 1

    def length_within(self, limit_bytes: int) -> int:
        """About how many tokens would fill another limit: temporaries in proportion to them."""
        return self.max_seq_length * max(0, limit_bytes - self.memory.argument_bytes) // max(1, self.memory.temp_bytes)

    def as_json(self) -> dict[str, Any]:
        """One object for machines; bytes, seconds and tokens."""
        workload, memory = self.workload, self.memory
        return {
            "model": workload.model,
            "gpu": workload.gpu,
            "max_seq_length": self.max_seq_length,
            "fits": self.fits,
            "device_bytes": memory.device_bytes,
            "device_argument_bytes": memory.argument_bytes,
            "device_temp_bytes": memory.temp_bytes,
            "device_limit_bytes": self.device_limit_bytes,
            "host_bytes": memory.host_bytes,
            "host_limit_bytes": self.host_limit_bytes,
            "policy": self.policy,
            "attention": self.attention,
            "quantize": workload.quantize,
            "lora_r": workload.lora_r,
            "gpus": workload.gpus,
            "hosts": workload.hosts,
            "weights_bytes": memory.weights_bytes,
            "state_bytes": memory.state_bytes,
            "model_flops": self.flops.total,
            "utilisation": UTILISATION,
            "step_seconds": self.flops.seconds(workload.gpu),
            "kernels": dict(self.kernels),
            "largest_buffers": [dataclasses.asdict(buffer) for buffer in self.buffers],
        }


class Planner:
    """Plans of one workload within one budget; no length is compiled twice.

    Args:
      workload: what is planned.
      vram_gb: plans for a GPU sold with so much memory, where that is less than the workload's GPU has.
      host_gb: GiB of host memory that may be pinned; any amount when None.
      compiling: told of every length before it is compiled.
    """

    def __init__(
        self,
        workload: Workload,
        vram_gb: float | None = None,
        host_gb: float | None = None,
        compiling: Callable[[Workload, int], None] = lambda workload, tokens: None,
    ):
        self.workload = workload
        self.device_limit_bytes = device_limit_bytes(workload.gpu, vram_gb)
        self.host_limit_bytes = None if host_gb is None else int(host_gb * GIB)
        self._compiling = compiling
        self._plans: dict[int, Plan] = {}

    def plan(self, tokens: int) -> Plan:
        """The plan at a length.

        Raises:
          InputError: a policy that is not for this length, or a step that cannot be compiled for this GPU.
        """
        if tokens not in self._plans:
            self._plans[tokens] = self._compiled(tokens)
        return self._plans[tokens]

    def longest(self, below: int = LONGEST + 1, guess: int | None = None) -> Plan | None:
        """The plan of the longest context under `below` tokens that fits, in multiples of 1,024; None where none does.

        `guess`, in tokens, is tried first.
        """

        def load(steps: int) -> float:
            plan = self.plan(steps * LENGTH_STEP)
            return max(plan.device_load, plan.host_load)

        for first, last in policy_lengths(self.workload, below - 1):
            low, high = -(-first // LENGTH_STEP), last // LENGTH_STEP
            start = guess // LENGTH_STEP if guess and low <= guess // LENGTH_STEP <= high else None
            found = largest_fitting(load, low, high, start) if low <= high else None
            if found is not None:
                return self.plan(found * LENGTH_STEP)
        return None

    def _compiled(self, tokens: int) -> Plan:
        self._compiling(self.workload, tokens)
        settings = choose_settings(self.workload, tokens)
        step = compile_step(self.workload, settings)
        return Plan(
            workload=self.workload,
            max_seq_length=tokens,
            policy=settings.use_gradient_checkpointing,
            attention=settings.attention,
            memory=step.memory,
            device_limit_bytes=self.device_limit_bytes,
            host_limit_bytes=self.host_limit_bytes,
            buffers=tuple(largest_buffers(step.live_ranges, step.program, _BUFFERS)),
            kernels=step.program.kernels(),
            flops=step_flops(self.workload.config, tokens, self.workload.lora_r),
        )
