"""What the backward pass keeps of the forward pass: on the device, in pinned host memory, or not at all.

The layers run under one `jax.checkpoint`; tensors that a policy may keep carry a name. Bytes are per layer and token, with
D the hidden size, H * head_dim the width of the attention output, and 2 bytes an element in bfloat16 (the
log-sum-exp is float32, and in two parts where the inputs are):

| policy | device | pinned host | recomputed |
| --- | --- | --- | --- |
| none | every result of a product or of attention | 0 | norms and activations |
| full | 2 D | 0 | the layer |
| offload (alias unsloth) | 0 | 2 D | the layer |
| offload_attn | 0 | 2 D + 2 H head_dim + 4 H | the layer but its attention |

Source: Chen et al., arXiv 1604.06174; the offload to host memory stands in for Unsloth's
`use_gradient_checkpointing="unsloth"`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from lcjax.errors import InputError

LAYER_INPUT = "layer_input"
ATTENTION_OUTPUT = "attention_output"
ATTENTION_LSE = "attention_lse"
PROJECTION = "projection"  # queries, keys and values after RoPE; gate and up
LOW_RANK = "low_rank"  # an adapter's x A^T
MIDDLE = "layer_middle"  # the residual stream between attention and MLP

POLICIES = ("none", "full", "offload", "offload_attn")
OFFLOADING = ("offload", "offload_attn")  # those that use host memory
ALIASES = {"unsloth": "offload"}

# From here on, one saved input per layer fills a GPU (8B at 131,072 tokens: 32 GiB), so a policy that offloads is required.
OFFLOAD_ABOVE_TOKENS = 32_768
# Below this length the intermediates of every layer are cheaper to keep than to compute twice.
KEEP_UP_TO_TOKENS = 4_096

name_residual = checkpoint_name


def resolve_policy(requested: str, tokens: int, *, in_tiles: bool = False) -> str:
    """The policy for sequences of `tokens` tokens: one of POLICIES.

    `auto` is `none` up to 4,096 tokens (never where layers run in tiles, which are computed again), `full` up to 32,768 and
    `offload` above.

    Raises:
      InputError: an unknown name, or one that keeps residuals on the device above 32,768 tokens.
    """
    policy = ALIASES.get(requested, requested)
    if policy == "auto":
        if tokens > OFFLOAD_ABOVE_TOKENS:
            return "offload"
        return "full" if in_tiles or tokens > KEEP_UP_TO_TOKENS else "none"
    if policy not in POLICIES:
        known = ", ".join(("auto", *POLICIES, *ALIASES))
        raise InputError(f"use_gradient_checkpointing={requested!r} is unknown; use one of {known}")
    if tokens > OFFLOAD_ABOVE_TOKENS and policy in ("none", "full"):
        raise InputError(
            f"use_gradient_checkpointing={requested!r} at {tokens:,} tokens keeps every layer's activations on the device; "
            f"above {OFFLOAD_ABOVE_TOKENS:,} tokens use 'offload', 'offload_attn' or 'auto'"
        )
    return policy


def checkpoint_layer(layer: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """The body of the scan over layers, rematerialised as `policy` (one of POLICIES) says."""
    if policy == "none":
        # Position-wise results are cheaper to compute again than to write to memory and read back, layer by layer.
        keep = jax.checkpoint_policies.save_only_these_names(
            MIDDLE, PROJECTION, LOW_RANK, ATTENTION_OUTPUT, ATTENTION_LSE
        )
        return jax.checkpoint(layer, policy=keep, prevent_cse=False)
    if policy == "full":
        # The scan already saves its carry, which is the layer's input.
        return jax.checkpoint(layer, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False)
    offloaded = [LAYER_INPUT]
    if policy == "offload_attn":
        offloaded += [ATTENTION_OUTPUT, ATTENTION_LSE]
    offload = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=offloaded,
        offload_src="device",
        offload_dst="pinned_host",
    )
    return jax.checkpoint(layer, policy=offload, prevent_cse=False)
