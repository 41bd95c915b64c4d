"""What a picture is of, in a line or two above it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

_SHOWN_SOURCES = 3
_LONGEST_NAME = 40
_LINE = 80
# Of matplotlib's titles: a dollar sign in a name does not begin a formula.
STYLE = {"fontsize": 10, "parse_math": False}


def subject(model: str, data: Sequence[str | Path], *details: str) -> str:
    """`MODEL on SOURCE, SOURCE and N more; DETAIL, DETAIL`: the last parts of paths, shortened where they are long."""
    sources = [_name(path) for path in data[:_SHOWN_SOURCES]]
    more = len(data) - len(sources)
    listed = ", ".join(sources) + (f" and {more} more" if more else "")
    on = f" on {listed}" if listed else ""
    return f"{_name(model) or 'a model'}{on}" + ("; " + ", ".join(details) if details else "")


def wrapped(text: str) -> str:
    """In lines that fit above a picture."""
    return "\n".join(textwrap.wrap(text, _LINE))


def _name(path: str | Path) -> str:
    name = Path(path).name or str(path)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
