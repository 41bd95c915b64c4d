"""Changes that make a step fit, for a run on this machine's GPU and for a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from lcjax.errors import InputError
from lcjax.model import ModelSettings
from lcjax.plan.choosing.budget import Budget
from lcjax.plan.choosing.search import LENGTH_STEP
from lcjax.plan.compiling.aot import gpu_memory_bytes, gpu_names
from lcjax.plan.compiling.memory import Memory, gib
from lcjax.plan.compiling.run import Run
from lcjax.plan.planner import Plan, Planner
from lcjax.plan.workload import Workload

ANY_MEMORY = "--memory auto"
ONE_SEQUENCE = "--per-device-train-batch-size 1"
OFFLOAD = "--use-gradient-checkpointing offload"
FOUR_BITS = "--quantize nf4"

Replan = Callable[[Workload], Planner]


class Evidence(Protocol):
    """Predicts whether the step fits after a change."""

    def helps(self, flag: str) -> bool:
        """Whether one of the flags above makes it fit, or may do so where this is not known."""
        ...

    def shorter(self) -> int | None:
        """A smaller number of tokens that fits; None if there is none."""
        ...

    def larger(self) -> str | None:
        """A GPU or a host on which it fits; None if there is none."""
        ...


def remedies(run: Run, settings: ModelSettings, evidence: Evidence) -> Iterator[str]:
    """Flags that make a step fit, the cheapest change first.

    The last item may name a machine instead of a flag.
    """
    flags = {
        ANY_MEMORY: not settings.requested.leaves_memory_open,
        ONE_SEQUENCE: run.sequences > 1,
        OFFLOAD: settings.form.policy in ("none", "full"),
        FOUR_BITS: run.lora is not None and not run.quantized,
    }
    yield from (flag for flag, is_a_change in flags.items() if is_a_change and evidence.helps(flag))
    if (tokens := evidence.shorter()) is not None:
        yield f"--max-seq-length {tokens}"
    if (machine := evidence.larger()) is not None:
        yield machine


@dataclasses.dataclass(frozen=True)
class Estimated:
    """Evidence before a run's first step, estimated from the compiled step's memory."""

    tokens: int
    memory: Memory
    budget: Budget
    length_step: int = LENGTH_STEP

    def helps(self, flag: str) -> bool:
        if flag == FOUR_BITS:
            return self.memory.device_bytes > self.budget.device
        return flag in (ANY_MEMORY, ONE_SEQUENCE)

    def shorter(self) -> int | None:
        memory, budget = self.memory, self.budget
        share = min(
            (budget.device - memory.argument_bytes) / max(1, memory.device_bytes - memory.argument_bytes),
            1.0 if budget.host is None else budget.host / max(1, memory.host_bytes),
        )
        shorter = int(share * self.tokens) // self.length_step * self.length_step
        return shorter if 0 < shorter < self.tokens else None

    def larger(self) -> str:
        if self.memory.device_bytes > self.budget.device:
            return f"a GPU with {gib(self.memory.device_bytes)} free"
        return f"a host that can pin {gib(self.memory.host_bytes)}"


def remedies_of_plan(plan: Plan, replan: Replan) -> Iterator[str]:
    """The remedies of a plan, each confirmed by a compilation.

    `replan` makes a planner for a changed workload within the same budget.
    """
    return remedies(Run.of(plan.workload), plan.settings, Compiled(plan, replan))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Evidence for a plan: compiles the changed step."""

    plan: Plan
    replan: Replan

    def helps(self, flag: str) -> bool:
        changes = {OFFLOAD: {"use_gradient_checkpointing": "offload"}, FOUR_BITS: {"quantize": "nf4"}}
        return flag in changes and self._fits(**changes[flag])

    def shorter(self) -> int | None:
        longest = self.replan(self.plan.workload).longest(below=self.plan.max_seq_length)
        return None if longest is None else longest.max_seq_length

    def larger(self) -> str | None:
        for gpu in sorted(gpu_names(), key=gpu_memory_bytes):
            # Kernels and therefore memory differ little between GPUs. A GPU with less memory than
            # the step takes need not be compiled for.
            is_larger = gpu_memory_bytes(gpu) > self.plan.memory.device_bytes and gpu != self.plan.workload.gpu
            if is_larger and self._fits(gpu=gpu):
                return f"--gpu {gpu}"
        return None

    def _fits(self, **changes: Any) -> bool:
        """Whether the plan's length fits with the changes; False if they are not possible."""
        try:
            planner = self.replan(dataclasses.replace(self.plan.workload, **changes))
            return planner.plan(self.plan.max_seq_length).fits
        except InputError:
            return False
