"""Titles of pictures, in one or two lines."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

_LISTED_SOURCES = 3
_LONGEST_NAME = 40
_LINE = 80
# Style of matplotlib's titles: a dollar sign in a name does not begin a formula.
STYLE = {"fontsize": 10, "parse_math": False}


def subject(model: str, data: Sequence[str | Path], *details: str) -> str:
    """`MODEL on SOURCE, SOURCE and N more; DETAIL, DETAIL`, with the last parts of paths.

    Long names are shortened. Many sources in one folder are `N files of FOLDER`.
    """
    on = f" on {_listed(data)}" if data else ""
    return f"{_name(model) or 'a model'}{on}" + ("; " + ", ".join(details) if details else "")


def _listed(data: Sequence[str | Path]) -> str:
    more = len(data) - _LISTED_SOURCES
    folders = {Path(path).parent for path in data}
    if more > 0 and len(folders) == 1 and (folder := _name(folders.pop())):
        return f"{len(data):,} files of {folder}"
    return ", ".join(_name(path) for path in data[:_LISTED_SOURCES]) + (f" and {more:,} more" if more > 0 else "")


def wrapped(text: str) -> str:
    """Wraps the text into lines that fit above a picture."""
    return "\n".join(textwrap.wrap(text, _LINE))


def _name(path: str | Path) -> str:
    name = Path(path).name
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
