"""What the doctor finds: a question, its answer, and what follows for the command line."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Finding:
    """`flags` are of lcjax.train, by name without dashes; `stops` says that the run as asked for is not to be had."""

    question: str
    answer: str
    flags: dict[str, str] = dataclasses.field(default_factory=dict)
    stops: bool = False
