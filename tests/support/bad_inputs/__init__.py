"""Invalid inputs of every command, one module each, with the expected error messages."""

from __future__ import annotations

import importlib

from lcjax.__main__ import COMMANDS


def cases() -> list[tuple[str, str, str]]:
    """Returns (command, flags, text of the error message) for every invalid input."""
    modules = {command: importlib.import_module(f"{__name__}.{command}") for command in COMMANDS}
    return [(command, flags, said) for command, module in modules.items() for flags, said in module.CASES]
