"""The results of a run and their location."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

from lcjax.model import Llama


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """The results of a run. Losses are held-out, in nats per token; None if nothing is held out.

    `model` has the trained weights, and `loss_after` is theirs. `stopped_by` is the name of the
    signal that ended the run early, otherwise None. `best_step` is the step of the weights if the
    best ones were loaded, otherwise None.
    """

    model: Llama
    output_dir: Path
    steps: int
    loss_before: float | None
    loss_after: float | None
    stopped_by: str | None = None
    best_step: int | None = None


# The longest name in a folder's name. File systems allow 255 bytes, and a character has up to 4.
_LONGEST_NAME = 50


def default_output_dir(name_or_path: str) -> Path:
    """runs/NAME-TIME, a folder that does not exist yet."""
    name = Path(name_or_path).name.lower().removesuffix(".gguf")[:_LONGEST_NAME] or "model"
    return Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
