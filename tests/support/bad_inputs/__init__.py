"""Wrong inputs of every command, a module each, with the line that answers them."""

from __future__ import annotations

import importlib

from lcjax.__main__ import COMMANDS


def cases() -> list[tuple[str, str, str]]:
    """(command, flags, what the line says) of every wrong input."""
    modules = {command: importlib.import_module(f"{__name__}.{command}") for command in COMMANDS}
    return [(command, flags, said) for command, module in modules.items() for flags, said in module.CASES]
