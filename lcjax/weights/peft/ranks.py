"""The ranks of an adapter's linear maps, which PEFT's patterns can make different."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcjax.errors import InputError
from lcjax.weights.peft.names import REMEDY, Factor, module_of

# A name, or the end of a name after a dot. Other regular expressions of a file are not evaluated.
_NAME = re.compile(r"(\^|\.\*\\?\.)?(\w+(?:\\?\.\w+)*)\$?")


def is_readable(pattern: Any) -> bool:
    """Whether a `rank_pattern` or an `alpha_pattern` consists of names and positive numbers."""
    return isinstance(pattern, dict) and all(
        _NAME.fullmatch(name) and isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        for name, value in pattern.items()
    )


def rank_and_alpha(parsed: Mapping[str, Any], factor: Factor) -> tuple[int, float]:
    """The rank and `lora_alpha` of one linear map, by the first name of each pattern that fits."""
    rank = _matched(parsed.get("rank_pattern"), factor.key, parsed["r"])
    alpha = _matched(parsed.get("alpha_pattern"), factor.key, parsed["lora_alpha"])
    return (rank, alpha) if factor.parts == 1 else (rank // factor.parts, alpha / factor.parts)


def largest_rank(
    parsed: Mapping[str, Any], factors: Mapping[str, Factor], path: Path
) -> tuple[int, float, dict[str, int]]:
    """The largest rank, its `lora_alpha`, and every linear map's rank by its name in the model.

    Adapters of smaller rank become ones of the largest rank by rows of A and columns of B that are
    zero. They add zero, and training leaves them zero, because the gradient of one is a product
    with the other.

    Raises:
      InputError: the maps have different factors on B A x.
      KeyError, TypeError: the config lacks a number.
    """
    modules = {module: factor for name, factor in factors.items() if (module := module_of(name))}
    found = {module: rank_and_alpha(parsed, factor) for module, factor in modules.items()}
    scalings = {
        module: alpha / (math.sqrt(rank) if parsed.get("use_rslora") else rank)
        for module, (rank, alpha) in found.items()
        if isinstance(rank, int) and rank > 0
    }
    first = next(iter(scalings), "")
    for module, scaling in scalings.items():
        # The quotients of alphas such as 4.2 and 7 are rounded differently.
        if not math.isclose(scaling, scalings[first], rel_tol=1e-9):
            raise InputError(
                f"{path} scales the adapter of {first} by {scalings[first]:.6g} and that of {module} by {scaling:.6g}; "
                f"only one ratio of lora_alpha to r is supported: {REMEDY}"
            )
    default = parsed["r"], parsed["lora_alpha"]
    rank, alpha = max(found.values(), default=default)
    return rank, alpha, {module: rank for module, (rank, _) in found.items()}


def _matched(pattern: Any, key: str, default: Any) -> Any:
    for name, value in (pattern or {}).items():
        if (match := _NAME.fullmatch(name)) is None:
            continue
        plain = match[2].replace("\\.", ".")
        if key == plain or (match[1] != "^" and key.endswith(f".{plain}")):
            return value
    return default
