"""What a run started from, in its record, its checkpoints and its card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcjax.model import Llama, lora
from lcjax.train.checkpoints.fingerprint import fingerprint


def origin_of(model: Llama, saved: Mapping[str, Any]) -> dict[str, Any]:
    """What a run started from: `adapter`, its directory, and `weights`, their fingerprint.

    Args:
      model: as it is before the first step.
      saved: the description in the checkpoint from which the run is resumed; empty for a new run.

    Returns:
      Values for JSON; nothing if the run started from a new adapter or from a model's own weights.
    """
    if saved:
        return dict(saved.get("origin", {}))
    if not model.settings.adapter:
        return {}
    return {"adapter": model.settings.adapter, "weights": fingerprint(lora.detach(model.params)[1])}


def shown_origin(origin: Mapping[str, Any]) -> str:
    """What a run started from, for its card, which has no paths."""
    return f"adapter {_name(Path(origin['adapter']))}, fingerprint {origin['weights']}"


def _name(adapter: Path) -> str:
    """The name of an adapter's folder, or of its run's if that is more specific."""
    parts = [part for part in adapter.absolute().resolve().parts if part != "adapter"]
    return parts[-1] if len(parts) > 1 else adapter.name
