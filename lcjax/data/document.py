"""A document: the form of all data before encoding."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Document:
    """One text to learn from; attention and prediction do not cross its ends.

    Attributes:
      name: its path as the user gave it, with `:line` for a record of a file (records count from
        1).
      text: the whole text.
      learned: spans of the characters that have a loss, ascending; None means all.
      is_rendered: whether the text already contains its special tokens, as a chat template writes
        them. Such a text is encoded as it is; for others the tokenizer adds its own.
    """

    name: str
    text: str
    learned: tuple[tuple[int, int], ...] | None = None
    is_rendered: bool = False
