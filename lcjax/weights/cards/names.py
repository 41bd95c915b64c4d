"""How a card names the base model: by its hub id, or by the last part of a path."""

from __future__ import annotations

import re
from pathlib import Path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# A model in the cache of huggingface_hub.
_CACHED = re.compile(r"models--([A-Za-z0-9][\w.-]*?)--([A-Za-z0-9][\w.-]*)")


def hub_id(name_or_path: str) -> str | None:
    """The hub id that a model was loaded by, also from a cache folder; None for other paths."""
    for part in Path(name_or_path).parts:
        if found := _CACHED.fullmatch(part):
            return f"{found[1]}/{found[2]}"
    is_id = _HUB_ID.fullmatch(name_or_path) and not name_or_path.lower().endswith(".gguf")
    return name_or_path if is_id and not Path(name_or_path).exists() else None


def shown_name(name_or_path: str) -> str:
    """A name without folders, which may contain a user's name."""
    if name := hub_id(name_or_path):
        return name
    path = Path(name_or_path)
    name = "" if not name_or_path or path.expanduser().resolve() == Path.home() else path.name
    return re.sub(r"[^\w.-]", "_", name) or "a local model"
