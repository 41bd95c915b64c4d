"""The settings that a workload requests.

Where they are "auto", `lcjax.plan.choosing.tuner` chooses.
"""

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
      InputError: a policy that is unknown or not allowed at this length.
    """
    resolve_policy(workload.use_gradient_checkpointing, tokens)
    # What "auto" means on the GPU where the step will run.
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
    """The ranges of lengths (first, last) in which memory grows with length, the longest first.

    Memory may drop from one range to the next, because a policy may apply only to some lengths.
    """
    requested = workload.use_gradient_checkpointing
    policy = resolve_policy(requested, 1)
    if requested == "auto" and workload.memory == "auto":
        edges = [0, longest]  # the settings of the least memory are allowed at every length
    elif requested == "auto":
        edges = [0, KEEP_UP_TO_TOKENS, OFFLOAD_ABOVE_TOKENS, longest]
    elif policy in ("none", "full"):
        edges = [0, OFFLOAD_ABOVE_TOKENS]
    else:
        edges = [0, longest]
    edges = [min(edge, longest) for edge in edges]
    ranges = [(below + 1, last) for below, last in itertools.pairwise(edges) if below < last]
    return ranges[::-1]
