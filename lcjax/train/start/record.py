"""What a run started from, in its record, its checkpoints and its card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcjax.model import Llama, lora
from lcjax.train.checkpoints.fingerprint import fingerprint
from lcjax.train.checkpoints.folder import RunFolder


def origin_of(model: Llama, folder: RunFolder) -> dict[str, Any]:
    """What a run started from: its path as `adapter` or as `checkpoint`, and its `fingerprint`.

    With a checkpoint, `optimizer_state` is whether the optimizer's state is from there too, and
    `optimizer_steps` is the number of steps that this state had taken.

    Args:
      model: as it is before the first step.
      folder: of the run; if the run is resumed, its checkpoint knows the origin.

    Returns:
      Values for JSON; nothing if the run started from a new adapter or from a model's own weights.
    """
    if folder.resume is not None:
        return dict(folder.saved.get("origin", {}))
    if (start := folder.start) is not None:
        return {
            "checkpoint": str(start.point),
            "fingerprint": start.fingerprint(),
            "optimizer_state": start.optimizer_state,
            "optimizer_steps": start.optimizer_steps,
        }
    if not model.settings.adapter:
        return {}
    return {"adapter": model.settings.adapter, "fingerprint": fingerprint(lora.detach(model.params)[1])}


def line_about_start(origin: Mapping[str, Any]) -> str:
    """What a new run takes over from a checkpoint."""
    steps = origin["optimizer_steps"]
    optimizer = f"its state after {steps:,} steps" if origin["optimizer_state"] else "no earlier state"
    return f"starting from checkpoint {origin['checkpoint']}; the optimizer has {optimizer}"


def shown_origin(origin: Mapping[str, Any]) -> str:
    """What a run started from, for its card, which has no paths."""
    if "adapter" in origin:
        return f"adapter {_name(Path(origin['adapter']), 'adapter')}, fingerprint {origin['fingerprint']}"
    path = Path(origin["checkpoint"])
    optimizer = ", with the optimizer's state" if origin["optimizer_state"] else ""
    return (
        f"checkpoint {path.name} of {_name(path.parent, 'checkpoints')}{optimizer}, fingerprint {origin['fingerprint']}"
    )


def _name(path: Path, usual: str) -> str:
    """The name of a folder, or if it is the usual one, that of its run."""
    path = path.absolute().resolve()
    return path.parent.name if path.name == usual and path.parent.name else path.name
