"""No file of scripts/ or tests/ uses a private name of another module of this project."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("lcjax", "lcjax_scripts", "triton_ref", "tests")
SCRIPTS = tuple(path.stem for path in (ROOT / "scripts").glob("*.py"))
FILES = sorted([*(ROOT / "scripts").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])


def private_uses(source: str) -> list[str]:
    """Returns the private names of our other modules that a file imports, reads or replaces."""
    nodes = list(ast.walk(ast.parse(source)))
    ours: set[str] = set()
    found = []
    for node in nodes:
        for module, name in imported(node):
            if module.split(".")[0] in (*OURS, *SCRIPTS):
                ours.add(name.split(".")[-1])
                found += [f"{module}.{name}"] if is_private(f"{module}.{name}") else []
    for node in nodes:
        if isinstance(node, ast.alias) and node.asname and node.name.split(".")[-1] in ours:
            ours.add(node.asname)
    for node in nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr) and isinstance(node.value, ast.Name):
            found += [ast.unparse(node)] if node.value.id in ours else []
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("setattr", "delattr"):
            found += [ast.unparse(node)] if replaces_private(node, ours) else []
    return found


def imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yields (module, name) of every import; for `import a.b`, the module and its name."""
    if isinstance(node, ast.ImportFrom):
        yield from ((node.module or "", alias.name) for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from ((alias.name, alias.name) for alias in node.names)


def replaces_private(call: ast.Call, ours: set[str]) -> bool:
    """Returns whether a `setattr` call replaces a private name of ours.

    The call is `setattr(owner, name, ...)` or `setattr("module.name", ...)`.
    """
    texts = [x.value for x in call.args[:2] if isinstance(x, ast.Constant) and isinstance(x.value, str)]
    if not texts or not is_private(texts[0]):
        return False
    owner = call.args[0]
    return isinstance(owner, ast.Constant) or (isinstance(owner, ast.Name) and owner.id in ours)


def is_private(dotted: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in dotted.split("."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_uses_public_names_of_other_modules(path):
    assert private_uses(path.read_text(encoding="utf-8")) == []


def test_every_kind_of_use_is_found():
    source = """
import numpy as np
from lcjax.data import packing, store as files
from lcjax.data.packing import _IntegerSet
from numpy import _core
packing._IntegerSet(3)
files._lock, np._core, packing.plan, packing.__name__
monkeypatch.setattr(packing, "_LIMIT", 3)
monkeypatch.setattr("lcjax.data.store._SECONDS", 0)
monkeypatch.setattr(np, "_core", None)
"""
    assert sorted(private_uses(source)) == [
        "files._lock",
        "lcjax.data.packing._IntegerSet",
        "monkeypatch.setattr('lcjax.data.store._SECONDS', 0)",
        "monkeypatch.setattr(packing, '_LIMIT', 3)",
        "packing._IntegerSet",
    ]
