"""What the pre-tokenizers of a tokenizer do between two characters of a text."""

from __future__ import annotations

import enum
import unicodedata
from collections.abc import Callable
from typing import Any

from lcjax.data.tokenizing.adjacency import Adjacency, NotUnderstood

# GPT-2's pattern, which the byte-level pre-tokenizer has built in.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SPACES = " \t\n\r"
# Characters that every definition of punctuation includes.
_PUNCTUATION = frozenset("!\"#%&'()*,-./:;?@[\\]_{}")


class Between(enum.Enum):
    """What happens between two characters.

    BOUNDARY: one word ends and another begins there, regardless of the text before and after.
    OPEN: either that, or both belong to one word; each side is read independently.
    READ: how one side is read may depend on the other.
    """

    BOUNDARY = enum.auto()
    OPEN = enum.auto()
    READ = enum.auto()


Judge = Callable[[str, str], Between]


class Levels:
    """The pre-tokenizers in order; each divides the words of the previous one.

    Attributes:
      needs_space: whether the text after a cut must begin with a space, because a prefix would be
        put before anything else.
      is_bytes: whether the model reads bytes instead of characters.

    Raises:
      NotUnderstood: for one of them it is unknown where a text can be cut.
    """

    def __init__(self, definition: dict[str, Any] | None):
        self.needs_space = False
        self.is_bytes = False
        self._judges: list[Judge] = []
        self._space = " "
        for level in _flat(definition):
            if self.is_bytes:
                raise NotUnderstood(level["type"])
            self._add(level)

    def between(self, left: str, right: str) -> Between:
        """Their joint effect between two characters of a normalized text."""
        for judge in self._judges:
            found = judge(left, right)
            if found is not Between.OPEN:
                return found
        return Between.OPEN

    def as_read(self, character: str) -> str:
        """The character as the model reads it."""
        return self._space if character == " " else character

    def _add(self, level: dict[str, Any]) -> None:
        kind = level["type"]
        if kind == "ByteLevel":
            self.is_bytes = True
            self.needs_space |= level["add_prefix_space"]
            if level["use_regex"]:
                self._judges.append(self._reading(_matches(_GPT2)))
        elif kind == "Metaspace":
            self._add_metaspace(level)
        elif kind in _JUDGES:
            self._judges.append(self._reading(_JUDGES[kind](level)))
        else:
            raise NotUnderstood(kind)

    def _add_metaspace(self, level: dict[str, Any]) -> None:
        if self._space != " " or len(level["replacement"]) != 1:
            raise NotUnderstood("Metaspace")
        self.needs_space |= level["prepend_scheme"] != "never"
        space = self._space = level["replacement"]
        if level["split"]:
            self._judges.append(lambda left, right: Between.BOUNDARY if right in (" ", space) else Between.OPEN)

    def _reading(self, judge: Judge) -> Judge:
        """The judge of the next level, with the text as the previous levels present it."""
        if self._space == " ":
            return judge
        return lambda left, right: judge(self.as_read(left), self.as_read(right))


def _flat(definition: dict[str, Any] | None) -> list[dict[str, Any]]:
    if definition is None:
        return []
    if definition["type"] == "Sequence":
        return [level for part in definition["pretokenizers"] for level in _flat(part)]
    return [definition]


def _matches(pattern: str) -> Judge:
    """Each match of an expression is a word, and so is the text between two matches."""
    adjacency = Adjacency(pattern)

    def judge(left: str, right: str) -> Between:
        if adjacency.reads_both(left, right):
            return Between.READ
        is_matched = adjacency.surely_matches(left) or adjacency.surely_matches(right)
        return Between.BOUNDARY if is_matched else Between.OPEN

    return judge


def _split(level: dict[str, Any]) -> Judge:
    (kind, pattern), behavior = next(iter(level["pattern"].items())), level["behavior"]
    if kind == "String" and len(pattern) == 1 and not level["invert"]:
        return _by_character(lambda character: character == pattern, behavior)
    if behavior in ("Isolated", "Removed"):
        return _matches(pattern if kind == "Regex" else literally(pattern))
    raise NotUnderstood("Split")


def literally(text: str) -> str:
    """The regular expression that matches this text."""
    return "".join(rf"\x{{{ord(character):x}}}" for character in text)


def _whitespace(level: dict[str, Any]) -> Judge:
    words = _matches(r"\w+|[^\w\s]+")
    # Another library's \w, which differs for some characters.
    return lambda left, right: words(left, right) if (left + right).isascii() else Between.READ


def _by_character(is_matched: Callable[[str], bool | None], behavior: str) -> Judge:
    """Each matched character is a word, or is joined to the text before or after it.

    Args:
      is_matched: returns None if it is unknown.
    """
    if behavior not in ("Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"):
        raise NotUnderstood(behavior)

    def judge(left: str, right: str) -> Between:
        before, after = is_matched(left), is_matched(right)
        if behavior in ("Isolated", "Removed"):
            return Between.BOUNDARY if before or after else Between.OPEN
        if before is None or after is None:
            return Between.READ
        if behavior == "Contiguous":
            return Between.READ if before and after else Between.BOUNDARY if before or after else Between.OPEN
        joins, parts = (after, before) if behavior == "MergedWithPrevious" else (before, after)
        return Between.READ if joins else Between.BOUNDARY if parts else Between.OPEN

    return judge


def _is_digit(character: str) -> bool | None:
    if character.isascii():
        return character.isdigit()
    # Numbers, and code points that a later version of Unicode may define as numbers.
    return None if unicodedata.category(character).startswith(("N", "C")) else False


def _is_punctuation(character: str) -> bool | None:
    if character in _PUNCTUATION:
        return True
    return False if character in _SPACES or (character.isascii() and character.isalnum()) else None


_JUDGES: dict[str, Callable[[dict[str, Any]], Judge]] = {
    "Split": _split,
    "Whitespace": _whitespace,
    "WhitespaceSplit": lambda level: _by_character(lambda character: character in _SPACES or None, "Removed"),
    "BertPreTokenizer": lambda level: _by_character(
        lambda character: character in _SPACES or _is_punctuation(character) or None, "Removed"
    ),
    "CharDelimiterSplit": lambda level: _by_character(lambda character: character == level["delimiter"], "Removed"),
    "Punctuation": lambda level: _by_character(_is_punctuation, level["behavior"]),
    "Digits": lambda level: _by_character(_is_digit, "Isolated" if level["individual_digits"] else "Contiguous"),
}
