"""Names of a package that are imported on first use (PEP 562), so that `--help` needs no JAX."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package.

    Args:
      modules: for each public name the module that has it; the empty string if the name is a module
        of the package.
    """

    def attribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(modules[name] or f"{package}.{name}")
        found = getattr(module, name) if modules[name] else module
        setattr(sys.modules[package], name, found)
        return found

    return attribute
