"""Does a step fit the GPU, and with what policy?

The answer comes from the compiler if it is installed, otherwise from a rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lcjax.config import Execution
from lcjax.config.policies import OFFLOAD_ABOVE_TOKENS
from lcjax.doctor.findings import Finding
from lcjax.errors import InputError
from lcjax.plan.compiling.memory import GIB
from lcjax.plan.planner import Plan, Planner
from lcjax.plan.report import duration, headline
from lcjax.plan.workload import Workload

QUESTION = "does it fit, and how?"

Replan = Callable[[Workload], Planner]


def by_rule(workload: Workload, tokens: int) -> Finding:
    """What is known without a GPU: the policy for this length, and its host memory."""
    return Finding(QUESTION, f"give a --gpu to know; {_rule(workload, tokens)}")


def by_plan(workload: Workload, tokens: int, replan: Replan) -> Finding:
    """Compiles the step for the workload's GPU; reports the first form that fits.

    It tries the step as requested, then in 4 bits, then shorter.
    """
    try:
        return _planned(workload, tokens, replan)
    except InputError as error:
        return Finding(QUESTION, f"not planned: {error}. By rule: {_rule(workload, tokens)}")


def _rule(workload: Workload, tokens: int) -> str:
    policy, config = Execution().form(tokens).policy, workload.config
    if tokens <= OFFLOAD_ABOVE_TOKENS:
        return f"up to {OFFLOAD_ABOVE_TOKENS:,} tokens activations may stay on the GPU ({policy})"
    inputs = config.num_hidden_layers * tokens * config.hidden_size * 2
    return (
        f"above {OFFLOAD_ABOVE_TOKENS:,} tokens every layer's input is saved in pinned host "
        f"memory, {inputs / GIB:,.1f} GiB in bfloat16 ({policy})"
    )


def _planned(workload: Workload, tokens: int, replan: Replan) -> Finding:
    plan = replan(workload).plan(tokens)
    if not plan.fits:
        plan = _in_four_bits(workload, tokens, replan) or plan
    workload = plan.workload
    if plan.fits:
        return Finding(QUESTION, _fitting(plan), _flags(workload))
    longest = replan(workload).longest(below=tokens)
    if longest is None:
        answer = f"no, at no length: {headline(plan)}; choose a larger --gpu or a smaller model"
        return Finding(QUESTION, answer, stops=True)
    answer = f"no: {headline(plan)}. {longest.max_seq_length:,} tokens fit: {_fitting(longest)}"
    return Finding(QUESTION, answer, _flags(workload) | {"max-seq-length": str(longest.max_seq_length)}, stops=True)


def _in_four_bits(workload: Workload, tokens: int, replan: Replan) -> Plan | None:
    """The plan with quantized weights; None if they are not possible."""
    try:
        return replan(dataclasses.replace(workload, quantize="nf4")).plan(tokens)
    except InputError:
        return None


def _flags(workload: Workload) -> dict[str, str]:
    return {"quantize": workload.quantize} if workload.quantize else {}


def _fitting(plan: Plan) -> str:
    layers = "" if plan.layers == "none" else f", layers in tiles ({plan.layers})"
    seconds = duration(plan.seconds)
    return (
        f"{headline(plan)} with weights in {plan.workload.weights}, gradient "
        f"checkpointing {plan.policy}{layers}; about {seconds} per step"
    )
