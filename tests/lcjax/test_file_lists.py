"""The number of modules in each folder of lcjax is limited."""

from __future__ import annotations

from pathlib import Path

import pytest

import lcjax

PACKAGE = Path(lcjax.__file__).parent

LIMIT = 12
"""Modules that a folder may hold at one level, not counting `__init__` and `__main__`."""

# Folders that held more when the limit was set. These numbers may only become smaller.
MORE = {"evaluate": 16}


def modules(folder: Path) -> list[str]:
    """The Python modules directly in a folder, without those whose names Python prescribes."""
    return sorted(path.name for path in folder.glob("*.py") if path.stem not in ("__init__", "__main__"))


FOLDERS = sorted({path.parent for path in PACKAGE.rglob("*.py")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(PACKAGE)))
def test_a_folder_holds_at_most_a_dozen_modules(folder):
    found = modules(folder)
    name = folder.relative_to(PACKAGE).as_posix()
    assert len(found) <= MORE.get(name, LIMIT), f"split lcjax/{name}: {', '.join(found)}"


def test_every_exception_is_needed():
    assert [name for name in MORE if len(modules(PACKAGE / name)) <= LIMIT] == []
