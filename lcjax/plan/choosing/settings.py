"""What a run is asked to be computed with; where that is "auto", `lcjax.plan.choosing.tuner` chooses."""

from __future__ import annotations

import itertools

from lcjax.config import parse_memory
from lcjax.config.policies import KEEP_UP_TO_TOKENS, OFFLOAD_ABOVE_TOKENS, resolve_policy
from lcjax.model import ModelSettings
from lcjax.ops.attention.registry import takes_segments
from lcjax.plan.workload import Workload


def requested_settings(workload: Workload, tokens: int) -> ModelSettings:
    """The settings of `lcjax.train` for sequences of `tokens` tokens on the workload's GPU.

    Raises:
      InputError: a policy that is unknown or not for this length.
    """
    resolve_policy(workload.use_gradient_checkpointing, tokens)
    # What "auto" means where the step will run, which is not here.
    attention = "pallas" if workload.attention == "auto" else workload.attention
    return ModelSettings(
        max_seq_length=tokens,
        lora=workload.lora,
        use_gradient_checkpointing=workload.use_gradient_checkpointing,
        memory=parse_memory(workload.memory),
        loss_chunk=workload.loss_chunk,
        attention=attention,
        one_document_a_row=not takes_segments(attention),
    )


def policy_lengths(workload: Workload, longest: int) -> list[tuple[int, int]]:
    """The ranges of lengths (first, last) over which memory grows with the length, the longest lengths first.

    From one to the next it may shrink, where a policy holds for some lengths only.
    """
    requested = workload.use_gradient_checkpointing
    policy = resolve_policy(requested, 1)
    if requested == "auto" and workload.memory == "auto":
        edges = [0, longest]  # what needs least may be chosen at any length
    elif requested == "auto":
        edges = [0, KEEP_UP_TO_TOKENS, OFFLOAD_ABOVE_TOKENS, longest]
    elif policy in ("none", "full"):
        edges = [0, OFFLOAD_ABOVE_TOKENS]
    else:
        edges = [0, longest]
    edges = [min(edge, longest) for edge in edges]
    ranges = [(below + 1, last) for below, last in itertools.pairwise(edges) if below < last]
    return ranges[::-1]
