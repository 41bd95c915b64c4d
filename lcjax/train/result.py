"""What a run leaves, and where."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

from lcjax.model import Llama


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a run leaves. Losses are held-out, in nats a token, None without held-out documents.

    `model` carries the trained weights. `stopped_by` names the signal that ended the run early, else it is None.
    """

    model: Llama
    output_dir: Path
    steps: int
    loss_before: float | None
    loss_after: float | None
    stopped_by: str | None = None


# Of a folder's name; file systems take 255 bytes, of which a character has 4 at most.
_LONGEST_NAME = 50


def default_output_dir(name_or_path: str) -> Path:
    """runs/NAME-TIME, a folder that does not exist yet."""
    name = Path(name_or_path).name.lower().removesuffix(".gguf")[:_LONGEST_NAME] or "model"
    return Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
