"""Policies of gradient checkpointing: what is saved on the device, on the host, or recomputed.

`lcjax.memory.checkpoint` has the table of what each policy saves.
"""

from __future__ import annotations

from lcjax.errors import InputError

POLICIES = ("none", "full", "offload", "offload_attn")
OFFLOADING = ("offload", "offload_attn")  # policies that use host memory
ALIASES = {"unsloth": "offload"}

# Above this length, one saved input per layer fills a GPU (8B at 131,072 tokens: 32 GiB), so a
# policy that offloads is required, and "auto" runs layers in tiles. Up to it, layers without tiles
# are faster and their activations fit.
OFFLOAD_ABOVE_TOKENS = 32_768
# Up to this length the intermediates of every layer are cheaper to save than to recompute.
KEEP_UP_TO_TOKENS = 4_096


def resolve_policy(requested: str, tokens: int, *, in_tiles: bool = False) -> str:
    """The policy for sequences of `tokens` tokens: one of POLICIES.

    `auto` is `none` up to 4,096 tokens, `full` up to 32,768 and `offload` above. Layers in tiles
    are always recomputed; for them `auto` is never `none`.

    Raises:
      InputError: the name is unknown, or the policy saves residuals on the device above 32,768
        tokens.
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
            f"use_gradient_checkpointing={requested!r} at {tokens:,} tokens saves every layer's "
            f"activations on the device; above {OFFLOAD_ABOVE_TOKENS:,} tokens use 'offload', "
            "'offload_attn' or 'auto'"
        )
    return policy
