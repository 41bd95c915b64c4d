"""Plans: the step of a workload at some length, compiled, compared with what its GPU and host have."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from lcjax.config.rope import LONGEST
from lcjax.model import ModelSettings
from lcjax.ops.cross_entropy import chunk_tokens
from lcjax.plan.choosing.budget import Budget, budget_of
from lcjax.plan.choosing.choose import choose, settings_of_least_memory
from lcjax.plan.choosing.flops import StepFlops, step_flops
from lcjax.plan.choosing.search import LENGTH_STEP, largest_fitting
from lcjax.plan.choosing.settings import policy_lengths, requested_settings
from lcjax.plan.choosing.tuner import Tuning
from lcjax.plan.compiling.buffers import Buffer
from lcjax.plan.compiling.figures import compiled_figures
from lcjax.plan.compiling.memory import Memory
from lcjax.plan.compiling.run import Run
from lcjax.plan.workload import Workload


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one step at one length takes, and whether it is there.

    `seconds` is the estimated time of the step (see `lcjax.plan.choosing.cost`). `tuning` is None
    where the settings were not chosen.
    """

    workload: Workload
    settings: ModelSettings
    memory: Memory
    budget: Budget
    buffers: tuple[Buffer, ...]
    kernels: dict[str, int]
    flops: StepFlops
    seconds: float
    tuning: Tuning | None = None

    @property
    def max_seq_length(self) -> int:
        """Tokens."""
        return self.settings.max_seq_length

    @property
    def policy(self) -> str:
        """The gradient checkpointing."""
        return self.settings.policy_for(self.max_seq_length)

    @property
    def layers(self) -> str:
        """The form of the layers, as --memory takes it."""
        return str(self.settings.memory_for(self.max_seq_length) or "none")

    @property
    def loss_chunk(self) -> int:
        """Tokens whose logits exist at a time, at most."""
        return self.settings.loss_chunk or chunk_tokens(self.workload.config.vocab_size)

    @property
    def device_load(self) -> float:
        """The GPU's share in use; more than 1 does not fit."""
        return self.budget.device_load(self.memory)

    @property
    def host_load(self) -> float:
        """The share in use of the host's memory; 0 where the host was not stated."""
        return self.budget.host_load(self.memory)

    @property
    def fits(self) -> bool:
        return self.budget.holds(self.memory)

    @property
    def utilization(self) -> float:
        """The share of the GPU's dense bfloat16 peak that the estimated time comes to."""
        return self.flops.seconds(self.workload.gpu, utilization=1.0) / self.seconds

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
            "device_limit_bytes": self.budget.device,
            "host_bytes": memory.host_bytes,
            "host_limit_bytes": self.budget.host,
            "policy": self.policy,
            "memory": self.layers,
            "loss_chunk": self.loss_chunk,
            "attention": self.settings.attention,
            "host_state_bytes": memory.host_state_bytes,
            "host_weights_bytes": memory.host_weights_bytes,
            "quantize": workload.quantize,
            "lora_r": workload.lora_r,
            "gpus": workload.gpus,
            "hosts": workload.hosts,
            "weights_bytes": memory.weights_bytes,
            "state_bytes": memory.state_bytes,
            "model_flops": self.flops.total,
            "utilization": self.utilization,
            "step_seconds": self.seconds,
            "kernels": self.kernels,
            "largest_buffers": [dataclasses.asdict(buffer) for buffer in self.buffers],
        }


class Planner:
    """Plans of one workload within one budget; nothing is compiled twice.

    Args:
      workload: what is planned.
      vram_gb: plans for a GPU sold with so much memory, where that is less than the workload's GPU has.
      host_gb: GiB of host memory that may be pinned; any amount when None.
      compiling: called with every length before it is compiled.
      compiled: called with every plan afterwards.
    """

    def __init__(
        self,
        workload: Workload,
        vram_gb: float | None = None,
        host_gb: float | None = None,
        compiling: Callable[[Workload, int], None] = lambda workload, tokens: None,
        compiled: Callable[[Plan], None] = lambda plan: None,
    ):
        self.workload = workload
        self.budget = budget_of(workload.gpu, vram_gb, host_gb)
        self._compiling, self._compiled = compiling, compiled
        self._plans: dict[ModelSettings, Plan] = {}

    def plan(self, tokens: int) -> Plan:
        """The plan at a length, by the fastest settings that fit where the workload leaves them open.

        Raises:
          InputError: a policy that is not for this length, or a step that cannot be compiled for this GPU.
        """
        settings = requested_settings(self.workload, tokens)
        if settings.memory != "auto":
            return self._plan_with(settings)
        tuning = choose(self._run, settings, self.budget, lambda chosen: self._plan_with(chosen).memory)
        return dataclasses.replace(self._plan_with(tuning.chosen.applied(settings)), tuning=tuning)

    def longest(self, below: int = LONGEST + 1, guess: int | None = None) -> Plan | None:
        """The plan of the longest context under `below` tokens that fits, in multiples of 1,024; None where none does.

        Where the workload leaves the settings open they are those that need least. `guess`, in tokens, is tried first.
        """

        def load(steps: int) -> float:
            plan = self._of_least_memory(steps * LENGTH_STEP)
            # As few inputs are saved as the host asks for: its share at one length says nothing of the next.
            chosen = self.workload.memory == "auto"
            return plan.device_load if chosen and plan.host_load <= 1 else max(plan.device_load, plan.host_load)

        for first, last in policy_lengths(self.workload, below - 1):
            low, high = -(-first // LENGTH_STEP), last // LENGTH_STEP
            start = guess // LENGTH_STEP if guess and low <= guess // LENGTH_STEP <= high else None
            found = largest_fitting(load, low, high, start) if low <= high else None
            if found is not None:
                return self._of_least_memory(found * LENGTH_STEP)
        return None

    def _of_least_memory(self, tokens: int) -> Plan:
        settings = requested_settings(self.workload, tokens)
        if settings.memory == "auto":
            settings = settings_of_least_memory(self._run, settings, self.budget)
        return self._plan_with(settings)

    @functools.cached_property
    def _run(self) -> Run:
        return Run.of(self.workload)

    def _plan_with(self, settings: ModelSettings) -> Plan:
        if settings not in self._plans:
            self._compiling(self.workload, settings.max_seq_length)
            figures = compiled_figures(self.workload, settings)
            self._plans[settings] = Plan(
                workload=self.workload,
                settings=settings,
                memory=figures.memory,
                budget=self.budget,
                buffers=figures.buffers,
                kernels=figures.kernels,
                flops=step_flops(self.workload.config, settings.max_seq_length, self.workload.lora_r),
                seconds=self._run.seconds(settings),
            )
            self._compiled(self._plans[settings])
        return self._plans[settings]
