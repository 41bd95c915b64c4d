"""Results of one model, or of two: the base model and the same with its adapter."""

from __future__ import annotations

import dataclasses
from typing import Any

from lcjax.evaluate.context import ContextLoss
from lcjax.evaluate.needle import Cell
from lcjax.evaluate.positions import Bucket


@dataclasses.dataclass(frozen=True)
class Results:
    """Each evaluation by the model's name, "base" or "adapter"; empty if not requested."""

    position: dict[str, list[Bucket]] = dataclasses.field(default_factory=dict)
    context: dict[str, list[ContextLoss]] = dataclasses.field(default_factory=dict)
    needle: dict[str, list[Cell]] = dataclasses.field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """{evaluation: {model: [row, ...]}} for the requested evaluations."""
        by_name = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: {model: [row._asdict() for row in rows] for model, rows in found.items()}
            for name, found in by_name.items()
            if found
        }
