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
# Up to this length, saving the intermediates of every layer costs less than recomputing them.
KEEP_UP_TO_TOKENS = 4_096


def check_policy_name(requested: str) -> None:
    """Checks the name of a policy, an alias or "auto".

    Raises:
      InputError: it is unknown.
    """
    if requested != "auto" and ALIASES.get(requested, requested) not in POLICIES:
        known = ", ".join(("auto", *POLICIES, *ALIASES))
        raise InputError(f"use_gradient_checkpointing={requested!r} is unknown; use one of {known}")


def check_policy(requested: str, tokens: int) -> None:
    """Checks a policy for sequences of which each device has `tokens` tokens.

    Raises:
      InputError: an unknown name, or a policy that saves inputs on the device above 32,768 tokens.
    """
    check_policy_name(requested)
    if tokens > OFFLOAD_ABOVE_TOKENS and saves_on_device(requested):
        raise InputError(
            f"use_gradient_checkpointing={requested!r} at {tokens:,} tokens on a device saves every layer's "
            f"activations there; above {OFFLOAD_ABOVE_TOKENS:,} tokens use 'offload', "
            "'offload_attn' or 'auto'"
        )


def saves_on_device(requested: str) -> bool:
    """Whether a policy never uses host memory; "auto" may."""
    return requested in ("none", "full")


def policies_by_length(requested: str, *, in_tiles: bool = False) -> list[tuple[str, int | None]]:
    """Pairs (policy, the longest sequence in tokens for which it holds), by ascending length.

    None means any length. "auto" is `none` up to 4,096 tokens, `full` up to 32,768 and `offload`
    above. Layers in tiles are always recomputed, so there `none` becomes `full`.

    Raises:
      InputError: the name is unknown.
    """
    check_policy_name(requested)
    if requested == "auto":
        plain: list[tuple[str, int | None]] = [("none", KEEP_UP_TO_TOKENS)]
        return [*([] if in_tiles else plain), ("full", OFFLOAD_ABOVE_TOKENS), ("offload", None)]
    policy = ALIASES.get(requested, requested)
    return [(policy, None if policy in OFFLOADING else OFFLOAD_ABOVE_TOKENS)]
