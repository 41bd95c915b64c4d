"""Plans: compiles a workload's step and compares its memory with that of GPU and host."""

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
from lcjax.plan.choosing.search import largest_fitting
from lcjax.plan.choosing.settings import policy_lengths, requested_settings
from lcjax.plan.choosing.tuner import Tuning
from lcjax.plan.compiling.buffers import Buffer
from lcjax.plan.compiling.collectives import Collectives
from lcjax.plan.compiling.figures import compiled_figures
from lcjax.plan.compiling.memory import Memory
from lcjax.plan.compiling.run import Run
from lcjax.plan.workload import Workload
from lcjax.step import with_attention


@dataclasses.dataclass(frozen=True)
class Plan:
    """The memory and the time of one step at one length, and the memory that is available.

    Attributes:
      seconds: the estimated time of the step (see `lcjax.plan.choosing.cost`).
      tuning: how the settings were chosen; None if they were given.
    """

    workload: Workload
    settings: ModelSettings
    memory: Memory
    budget: Budget
    buffers: tuple[Buffer, ...]
    kernels: dict[str, int]
    collectives: tuple[Collectives, ...]
    flops: StepFlops
    seconds: float
    tuning: Tuning | None = None

    @property
    def max_seq_length(self) -> int:
        """The length of the sequence in tokens."""
        return self.settings.max_seq_length

    @property
    def policy(self) -> str:
        """The gradient checkpointing policy."""
        return self.settings.form.policy

    @property
    def attention(self) -> str:
        """The implementation of attention."""
        return self.settings.execution.attention

    @property
    def layers(self) -> str:
        """The memory settings of the layers, in the syntax of --memory."""
        return str(self.settings.form.memory or "none")

    @property
    def loss_chunk(self) -> int:
        """The largest number of tokens whose logits are computed at a time."""
        return self.settings.execution.loss_chunk or chunk_tokens(self.workload.config.vocab_size)

    @property
    def device_load(self) -> float:
        """The fraction of the GPU's memory that is used; above 1 the step does not fit."""
        return self.budget.device_load(self.memory)

    @property
    def host_load(self) -> float:
        """The fraction of the host's memory that is used; 0 if that memory is unlimited."""
        return self.budget.host_load(self.memory)

    @property
    def fits(self) -> bool:
        return self.budget.holds(self.memory)

    @property
    def utilization(self) -> float:
        """Model FLOP/s in the estimated time, as a fraction of the GPU's dense bfloat16 peak."""
        return (
            self.flops.seconds(self.workload.gpu, utilization=1.0) / self.seconds / self.settings.execution.mesh.context
        )

    def length_within(self, limit_bytes: int) -> int:
        """Estimates the tokens that fill another limit; temporaries are proportional to tokens."""
        return self.max_seq_length * max(0, limit_bytes - self.memory.argument_bytes) // max(1, self.memory.temp_bytes)

    def as_json(self) -> dict[str, Any]:
        """The plan as a dictionary for JSON, in bytes, seconds and tokens."""
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
            "attention": self.attention,
            "host_state_bytes": memory.host_state_bytes,
            "host_weights_bytes": memory.host_weights_bytes,
            "quantize": workload.quantize,
            "lora_r": workload.lora_r,
            "target_modules": workload.lora.target_modules if workload.lora else (),
            "gpus": workload.gpus,
            "hosts": workload.hosts,
            "mesh": dataclasses.asdict(self.settings.execution.mesh),
            "local_tokens": self.settings.local_tokens,
            "host_bytes_of_all_gpus": memory.host_bytes * workload.gpus,
            "weights_bytes": memory.weights_bytes,
            "state_bytes": memory.state_bytes,
            "model_flops": self.flops.total,
            "utilization": self.utilization,
            "step_seconds": self.seconds,
            "kernels": self.kernels,
            "collectives": [dataclasses.asdict(row) for row in self.collectives],
            "largest_buffers": [dataclasses.asdict(buffer) for buffer in self.buffers],
        }


class Planner:
    """Plans one workload within one budget; compiles nothing twice.

    Args:
      workload: the run to plan.
      vram_gb: plans for a GPU that is sold with so many GB, if the workload's GPU has more.
      host_gb: GiB of memory of each host that may be pinned; None means no limit. The GPUs of a
        host have equal parts of it.
      compiling: called with the workload and the number of tokens before each compilation.
      compiled: called with the plan after each compilation.
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
        self.budget = budget_of(workload.gpu, vram_gb, None if host_gb is None else host_gb / workload.gpus)
        self._compiling, self._compiled = compiling, compiled
        self._plans: dict[ModelSettings, Plan] = {}

    def plan(self, tokens: int) -> Plan:
        """The plan at a length, with the fastest settings that fit if the workload says "auto".

        Raises:
          InputError: a policy that is not allowed at this length, or a step that cannot be compiled
            for this GPU.
        """
        settings = requested_settings(self.workload, tokens)
        plan = self._fastest(settings)
        for slower in settings.execution.slower_attention:
            if plan.fits:
                break
            plan = self._fastest(with_attention(settings, slower))
        return plan

    def _fastest(self, settings: ModelSettings) -> Plan:
        if not settings.requested.leaves_memory_open:
            return self._plan_with(settings)
        tuning = choose(self._run, settings, self.budget, lambda chosen: self._plan_with(chosen).memory)
        return dataclasses.replace(self._plan_with(tuning.chosen.applied(settings)), tuning=tuning)

    def longest(self, below: int = LONGEST + 1, guess: int | None = None) -> Plan | None:
        """The plan of the longest context below `below` tokens that fits.

        Lengths are multiples of `Workload.length_step`. None if no length fits. If the workload
        says "auto", the settings are those that need the least memory. `guess`, in tokens, is tried
        first.
        """

        step = self.workload.length_step

        def load(steps: int) -> float:
            plan = self._of_least_memory(steps * step)
            # The number of saved inputs is chosen so that they fit the host. The host's load at one
            # length therefore does not predict its load at the next.
            chosen = self.workload.execution_request.leaves_memory_open
            return plan.device_load if chosen and plan.host_load <= 1 else max(plan.device_load, plan.host_load)

        for first, last in policy_lengths(self.workload, below - 1):
            low, high = -(-first // step), last // step
            start = guess // step if guess and low <= guess // step <= high else None
            found = largest_fitting(load, low, high, start) if low <= high else None
            if found is not None:
                return self._of_least_memory(found * step)
        return None

    def _of_least_memory(self, tokens: int) -> Plan:
        settings = requested_settings(self.workload, tokens)
        if slower := settings.execution.slower_attention:
            settings = with_attention(settings, slower[-1])
        if settings.requested.leaves_memory_open:
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
                collectives=figures.collectives,
                flops=step_flops(
                    self.workload.config,
                    settings.max_seq_length,
                    self.workload.lora_r,
                    self.workload.lora and self.workload.lora.target_modules,
                ),
                seconds=self._run.seconds(settings),
            )
            self._compiled(self._plans[settings])
        return self._plans[settings]
