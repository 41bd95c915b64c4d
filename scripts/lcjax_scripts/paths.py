"""The path of the scripts, and a PYTHONPATH for subprocesses."""

from __future__ import annotations

import os
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1]
TREE = SCRIPTS.parent


def python_path() -> str:
    """Returns a PYTHONPATH that starts with this package and with the lcjax of this tree."""
    return os.pathsep.join(filter(None, [str(SCRIPTS), str(TREE), os.environ.get("PYTHONPATH", "")]))
