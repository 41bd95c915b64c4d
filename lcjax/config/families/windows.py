"""Layers with a window, and layers that see all earlier tokens: `layer_types` of config.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

WINDOW, FULL = "sliding_attention", "full_attention"


def refusal(config: LlamaConfig, kinds: Any) -> str | None:
    """Why `kinds`, what each layer sees, is not supported; None if it is."""
    if not isinstance(kinds, tuple):
        return f"layer_types={kinds!r} is not a list"
    if len(kinds) != config.num_hidden_layers:
        return f"layer_types has {len(kinds)} entries for {config.num_hidden_layers} layers"
    if unknown := sorted(set(map(str, kinds)) - {WINDOW, FULL}):
        return f"layer_types has {unknown[0]!r}, and only {FULL} and {WINDOW} are supported"
    if WINDOW in kinds and config.sliding_window is None:
        return f"layer_types has {WINDOW}, but there is no sliding_window"
    return None


def switched_refusal(config: LlamaConfig, kinds: Any) -> str | None:
    """As `refusal`, where `use_sliding_window` must be set for layers with a window."""
    uses = config.own_value("use_sliding_window")
    if uses is not None and not isinstance(uses, bool):
        return f"use_sliding_window={uses!r} is not true or false"
    if isinstance(kinds, tuple) and WINDOW in kinds and not uses:
        return f"layer_types has {WINDOW}, but use_sliding_window is not set"
    return refusal(config, kinds)


def contradiction(config: LlamaConfig, given: Any) -> str | None:
    """Why the `layer_types` of a file contradict a family that has no such key; None if they agree.

    transformers ignores them.
    """
    kinds = [WINDOW if config.family.sees(config, layer).window else FULL for layer in range(config.num_hidden_layers)]
    if given == kinds:
        return None
    if not isinstance(given, list) or len(given) != len(kinds):
        return f"layer_types is not a list of {len(kinds)} entries, one for each layer"
    layer = next(layer for layer, kind in enumerate(kinds) if given[layer] != kind)
    has = f"a {config.model_type} model with sliding_window={config.sliding_window} has {kinds[layer]} there"
    return f"layer_types has {str(given[layer])[:40]!r} for layer {layer}, but {has}"


def window(config: LlamaConfig, kind: str) -> int | None:
    """The window of a layer."""
    return config.sliding_window if kind == WINDOW else None
