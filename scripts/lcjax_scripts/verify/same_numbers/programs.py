"""Removes names from compiled programs, so that those of two commits can be compared."""

from __future__ import annotations

import re

from jaxlib.mlir import ir
from jaxlib.triton import dialect

# A quoted string in the text of an HLO module; the group is its content.
_STRING = r'"((?:[^"\\]|\\.)*)"'
_KERNEL_IR = re.compile(rf"\bir = {_STRING}")
_KERNEL_NAME = re.compile(rf'(custom_call_target="__gpu\$xla\.gpu\.triton".*, )name = {_STRING}')
_METADATA = re.compile(r', (metadata|frontend_attributes)=\{(?:[^{}"]|"(?:[^"\\]|\\.)*")*\}')
_ESCAPE = re.compile(rb'\\([0-9A-Fa-f]{2}|[\\"])')


def without_names(text: str) -> str:
    """Removes metadata, source locations, instruction names and kernel names from an HLO module.

    A Triton kernel is a custom call with its MLIR bytecode in `backend_config`. The bytecode is
    replaced by text without the kernel's name and source locations. Operations, types, constants,
    grid, warps and stages remain and are compared.
    """
    lines = [line for line in text.splitlines() if line.startswith((" ", "%", "ENTRY", "}"))]
    text = _METADATA.sub("", "\n".join(lines))
    text = _KERNEL_NAME.sub(r"\1", text)
    text = _KERNEL_IR.sub(lambda found: f"ir =\n{kernel_without_names(unescaped(found[1]))}", text)
    numbers: dict[str, str] = {}
    return re.sub(r"%([\w.-]+)", lambda match: numbers.setdefault(match[1], f"%{len(numbers)}"), text)


def kernel_without_names(bytecode: bytes) -> str:
    """Returns the text of a Triton kernel's MLIR, without symbol names and locations."""
    with ir.Context() as context:
        dialect.register_dialect(context)
        context.allow_unregistered_dialects = True
        text = ir.Module.parse(bytecode).operation.get_asm(enable_debug_info=False)
    assert isinstance(text, str)
    symbols: dict[str, str] = {}
    return re.sub(r"@([\w.-]+)", lambda match: symbols.setdefault(match[1], f"@{len(symbols)}"), text)


def unescaped(string: str) -> bytes:
    """Returns the bytes of a string in an HLO module with the escapes `\\XX`, `\\\\` and `\\"`."""

    def byte_of(found: re.Match[bytes]) -> bytes:
        return bytes.fromhex(found[1].decode()) if len(found[1]) == 2 else found[1]

    return _ESCAPE.sub(byte_of, string.encode("latin-1"))
