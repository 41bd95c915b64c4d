"""How a run is to be computed: the one place where settings are chosen for a length, and where a tuner will try others."""

from __future__ import annotations

import itertools

from lcjax.memory import parse_memory
from lcjax.model import ModelSettings
from lcjax.plan.workload import Workload
from lcjax.remat import KEEP_UP_TO_TOKENS, OFFLOAD_ABOVE_TOKENS, resolve_policy


def choose_settings(workload: Workload, tokens: int) -> ModelSettings:
    """The settings with which `lcjax.train` would run sequences of `tokens` tokens on the workload's GPU.

    Raises:
      InputError: a policy that is unknown or not for this length.
    """
    return ModelSettings(
        max_seq_length=tokens,
        lora=workload.lora,
        use_gradient_checkpointing=resolve_policy(workload.use_gradient_checkpointing, tokens),
        memory=parse_memory(workload.memory),
        # What "auto" means where the step will run, which is not here.
        attention="pallas" if workload.attention == "auto" else workload.attention,
    )


def policy_lengths(workload: Workload, longest: int) -> list[tuple[int, int]]:
    """The ranges of lengths (first, last) over which one policy holds, the longest lengths first.

    Within a range memory grows with the length; from one to the next it may shrink.
    """
    requested = workload.use_gradient_checkpointing
    policy = resolve_policy(requested, 1)
    if requested == "auto":
        edges = [0, KEEP_UP_TO_TOKENS, OFFLOAD_ABOVE_TOKENS, longest]
    elif policy in ("none", "full"):
        edges = [0, OFFLOAD_ABOVE_TOKENS]
    else:
        edges = [0, longest]
    edges = [min(edge, longest) for edge in edges]
    ranges = [(below + 1, last) for below, last in itertools.pairwise(edges) if below < last]
    return ranges[::-1]
