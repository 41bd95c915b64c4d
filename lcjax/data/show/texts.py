"""The text of tokens, in spans that are learned or not, as a terminal may show it."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast

# Control, format, surrogate and private characters, and the separators of lines and paragraphs.
# Some of them move the cursor or change the order of what is shown.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_REPLACEMENT = "\ufffd"


class Span(NamedTuple):
    """A part of a text, and whether the model learns to predict its tokens."""

    text: str
    is_learned: bool


def spans(ids: np.ndarray, learned: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> list[Span]:
    """The text of tokens, in order.

    A character whose bytes are in tokens of two spans is in the later one.

    Args:
      ids: [n] token ids.
      learned: [n] bool.
    """
    bounds = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(ids)] if len(ids) else [0]
    found, before, pending = [], 0, 0
    for start, stop in itertools.pairwise(bounds):
        # Tokens are decoded after those of the previous span: the first token of a text is special
        # to some tokenizers, and a character may begin there.
        context = _decoded(ids[before:start], tokenizer)
        text = _decoded(ids[before:stop], tokenizer)[len(context) - pending :]
        whole = text.rstrip(_REPLACEMENT) if stop < len(ids) else text
        before, pending = start, len(text) - len(whole)
        if whole:
            found.append(Span(whole, bool(learned[start])))
    return found


def _decoded(ids: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> str:
    # clean_up_tokenization_spaces would remove spaces before punctuation
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def visible(text: str, stay: str = "\n\t") -> str:
    """The text with escapes, such as \\x1b, for characters that a terminal would obey.

    Args:
      stay: characters that are not replaced.
    """
    return "".join(_escaped(character, stay) for character in text)


def _escaped(character: str, stay: str) -> str:
    if character in stay or unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape", errors="backslashreplace").decode()


def shortened(ids: np.ndarray, most: int) -> tuple[int, int]:
    """How many tokens to show from the beginning and from the end; (n, 0) for all."""
    if not most or len(ids) <= most:
        return len(ids), 0
    return most - most // 2, most // 2


def marked(parts: Sequence[Span]) -> Iterator[str]:
    """The plain notation: learned text between {+ and +}."""
    for text, is_learned in parts:
        yield f"{{+{visible(text)}+}}" if is_learned else visible(text)
