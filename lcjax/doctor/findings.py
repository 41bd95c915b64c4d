"""A finding of the doctor: a question, its answer, and the resulting flags."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Finding:
    """`flags` are lcjax.train's, without dashes; `stops`: the requested run is impossible."""

    question: str
    answer: str
    flags: dict[str, str] = dataclasses.field(default_factory=dict)
    stops: bool = False
