"""The files of a folder as one text, such as the chapters of a book."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"([0-9]+)")


def natural(name: str) -> tuple[list[str | int], str]:
    """The key of the order of names in which numbers count: chapter2 comes before chapter10."""
    # Text and numbers alternate, so parts of two names are compared with their own kind.
    parts = [int(part) if place % 2 else part.casefold() for place, part in enumerate(_NUMBER.split(name))]
    return parts, name


def joined(texts: Sequence[str]) -> str:
    """The texts, separated by blank lines."""
    filled = [text for text in texts if text.strip()]
    return "\n\n".join([*(text.rstrip("\n") for text in filled[:-1]), *filled[-1:]])
