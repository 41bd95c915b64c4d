"""What would fit where a plan does not, each proven by a compilation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from lcjax.errors import InputError
from lcjax.plan.aot import gpu_memory_bytes, gpu_names
from lcjax.plan.planner import Plan, Planner
from lcjax.plan.workload import Workload

Replan = Callable[[Workload], Planner]


def mends(plan: Plan, replan: Replan) -> Iterator[str]:
    """Flags that make the run fit, the cheapest first: another policy, quantised weights, a shorter context, a larger GPU.

    `replan` gives the planner of a changed workload within the same budget.
    """
    workload = plan.workload
    if plan.policy in ("none", "full") and _fits(plan, replan, use_gradient_checkpointing="offload"):
        yield "--use-gradient-checkpointing offload"
    if workload.quantize is None and workload.lora_r and _fits(plan, replan, quantize="nf4"):
        yield "--quantize nf4"
    longest = replan(workload).longest(below=plan.max_seq_length)
    if longest is not None:
        yield f"--max-seq-length {longest.max_seq_length}"
    for gpu in sorted(gpu_names(), key=gpu_memory_bytes):
        # Kernels, and so memory, differ little between GPUs: smaller ones need no compilation.
        if gpu_memory_bytes(gpu) > plan.memory.device_bytes and gpu != workload.gpu and _fits(plan, replan, gpu=gpu):
            yield f"--gpu {gpu}"
            return


def _fits(plan: Plan, replan: Replan, **changes: Any) -> bool:
    """Whether the plan's length fits with the changes; not where they cannot be had."""
    try:
        return replan(dataclasses.replace(plan.workload, **changes)).plan(plan.max_seq_length).fits
    except InputError:
        return False
