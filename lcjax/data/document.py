"""A document: the form of all data before encoding."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Document:
    """One text to learn from; no attention and no prediction crosses its ends.

    Attributes:
      name: its path as the user spelled it, with `:line` for a record of a file (records count from 1).
      text: all of it.
      learned: spans of the characters on which the loss is taken, ascending; None means all.
      is_rendered: whether the text has its special tokens written out, as a chat template writes them; then it is encoded as it
        is, and else the tokenizer adds its own.
    """

    name: str
    text: str
    learned: tuple[tuple[int, int], ...] | None = None
    is_rendered: bool = False
