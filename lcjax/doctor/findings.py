"""What the doctor finds: a question, its answer, and the flags that follow."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Finding:
    """`flags` are those of lcjax.train, without dashes; `stops` states that the requested run is impossible."""

    question: str
    answer: str
    flags: dict[str, str] = dataclasses.field(default_factory=dict)
    stops: bool = False
