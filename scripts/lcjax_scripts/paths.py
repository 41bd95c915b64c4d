"""Where the scripts are, and how a process of its own finds them."""

from __future__ import annotations

import os
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1]
TREE = SCRIPTS.parent


def python_path() -> str:
    """A PYTHONPATH with this package and lcjax of this tree, before what is already there."""
    return os.pathsep.join(filter(None, [str(SCRIPTS), str(TREE), os.environ.get("PYTHONPATH", "")]))
