"""The settings of an adapter."""

from __future__ import annotations

import dataclasses
import math

from lcjax.config.families import LLAMA
from lcjax.errors import InputError, unknown

TARGET_MODULES = tuple(LLAMA.adaptable)
ALL_LINEAR = "all-linear"
"""PEFT's name for all target modules."""

_CHOICES = (*TARGET_MODULES, ALL_LINEAR)
_NOT_IN_LAYERS = ("embed_tokens", "lm_head")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """A low-rank adapter: `y = W x + scaling * B (A x)`, with A [r, in] and B [out, r].

    Source: Hu et al., LoRA, arXiv 2106.09685; `use_rslora`: Kalajdzievski, arXiv 2312.03732.

    `target_modules` is one name or several names of TARGET_MODULES, or ALL_LINEAR.

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
        if not modules:
            raise InputError(f"an empty target_modules adapts nothing; choose from {', '.join(_CHOICES)}")
        for module in modules:
            if module in _NOT_IN_LAYERS:
                raise InputError(
                    f"target_modules={module!r} cannot be adapted, only the linear maps of the "
                    f"layers; choose from {', '.join(_CHOICES)}"
                )
            if module not in _CHOICES:
                raise InputError(unknown("target_modules", str(module), _CHOICES))
        # A fixed order, so that equal sets compare and hash equal.
        chosen = tuple(module for module in TARGET_MODULES if module in modules or ALL_LINEAR in modules)
        object.__setattr__(self, "target_modules", chosen)

    @property
    def scaling(self) -> float:
        """The factor on B A x: lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)
