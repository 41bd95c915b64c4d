"""The settings of an adapter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from lcjax.config.families import FAMILIES, Family
from lcjax.config.families.parameters.decoder import decoder_parameters
from lcjax.errors import InputError, unknown

TARGET_MODULES = tuple(row.module for row in decoder_parameters() if row.adaptable)
"""The linear maps of a layer, in most families."""
ALL_LINEAR = "all-linear"
"""PEFT's name for all linear maps of a layer."""

_NOT_IN_LAYERS = ("embed_tokens", "lm_head")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """A low-rank adapter: `y = W x + scaling * B (A x)`, with A [r, in] and B [out, r].

    Source: Hu et al., LoRA, arXiv 2106.09685; `use_rslora`: Kalajdzievski, arXiv 2312.03732.

    `target_modules` is one or several linear maps of some family's layers. ALL_LINEAR stands for
    TARGET_MODULES; see `target_modules_of` for the maps of a given family.

    Raises:
      InputError: r, lora_alpha or lora_dropout is out of range, or a target module is unknown.
    """

    r: int = 16
    lora_alpha: float = 32
    target_modules: tuple[str, ...] = TARGET_MODULES
    use_rslora: bool = False
    lora_dropout: float = 0.0

    def __post_init__(self):
        if not isinstance(self.r, int) or self.r <= 0:
            raise InputError(f"r={self.r!r} must be a positive integer (the rank of the adapter)")
        if not isinstance(self.lora_alpha, (int, float)) or not 0 < self.lora_alpha < math.inf:
            raise InputError(f"lora_alpha={self.lora_alpha!r} must be positive and finite")
        if not isinstance(self.lora_dropout, (int, float)) or not 0.0 <= self.lora_dropout < 1.0:
            raise InputError(f"lora_dropout={self.lora_dropout!r} must be at least 0 and below 1")
        modules = (self.target_modules,) if isinstance(self.target_modules, str) else tuple(self.target_modules)
        known = dict.fromkeys(module for family in FAMILIES.values() for module in family.adaptable)
        choices = *known, ALL_LINEAR
        if not modules:
            raise InputError(f"an empty target_modules adapts nothing; choose from {', '.join(choices)}")
        for module in modules:
            if module in _NOT_IN_LAYERS:
                raise InputError(
                    f"target_modules={module!r} cannot be adapted, only the linear maps of the "
                    f"layers; choose from {', '.join(choices)}"
                )
            if module in routers():
                raise InputError(router_refusal(module))
            if module not in choices:
                raise InputError(unknown("target_modules", str(module), choices))
        if ALL_LINEAR in modules:
            modules = TARGET_MODULES
        # A fixed order, so that equal sets compare and hash equal.
        object.__setattr__(self, "target_modules", tuple(module for module in known if module in modules))

    @property
    def scaling(self) -> float:
        """The factor on B A x: lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


def routers() -> set[str]:
    """What the families call the routers of their experts, which have no adapter."""
    rows = (row for family in FAMILIES.values() for row in family.parameters)
    return {row.hugging_face.split(".")[-2] for row in rows if row.module == "router"}


def router_refusal(module: str) -> str:
    """The message for a router among the target modules."""
    return (
        f"target_modules={module!r} is the router of experts, which has no adapter: omit it, or train every weight "
        "with --full-finetuning (in Python without get_peft_model)"
    )


def target_modules_of(family: Family, modules: str | Sequence[str]) -> tuple[str, ...]:
    """`target_modules` for a model of a family, where ALL_LINEAR stands for its linear maps."""
    modules = (modules,) if isinstance(modules, str) else tuple(modules)
    return tuple(family.adaptable) if ALL_LINEAR in modules else modules
