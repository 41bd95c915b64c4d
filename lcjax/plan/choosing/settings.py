"""The settings that a workload requests.

Where they are "auto", `lcjax.plan.choosing.tuner` chooses.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax.numpy as jnp

from lcjax.config.policies import policies_by_length
from lcjax.model import ModelSettings
from lcjax.ops.attention.registry import takes_segments
from lcjax.plan.compiling.aot import kernels_of
from lcjax.plan.workload import Workload
from lcjax.step import resolved_settings


def requested_settings(workload: Workload, tokens: int) -> ModelSettings:
    """The settings of `lcjax.train` for sequences of `tokens` tokens on the workload's GPU.

    Raises:
      InputError: a policy that is unknown or not allowed at this length.
    """
    request = workload.execution_request
    mesh = workload.mesh_for(tokens)
    with kernels_of(workload.gpu):
        settings = resolved_settings(
            request, workload.config, jnp.bfloat16, tokens, "gpu", lora=workload.lora, mesh=mesh
        )
    return dataclasses.replace(settings, one_document_a_row=not takes_segments(settings.execution.attention))


def policy_lengths(workload: Workload, longest: int) -> list[tuple[int, int]]:
    """The ranges of lengths (first, last) in which memory grows with length, the longest first.

    Memory may drop from one range to the next, because a policy may apply only to some lengths.
    """
    requested = workload.execution_request
    # The settings that need the least memory are allowed at every length.
    limits: list[int | None] = [None]
    if not (requested.leaves_policy_open and requested.leaves_memory_open):
        by_length = policies_by_length(requested.use_gradient_checkpointing)
        limits = [limit and limit * workload.context for _, limit in by_length]
    edges = [0, *(longest if limit is None else min(limit, longest) for limit in limits)]
    ranges = [(below + 1, last) for below, last in itertools.pairwise(edges) if below < last]
    return ranges[::-1]
