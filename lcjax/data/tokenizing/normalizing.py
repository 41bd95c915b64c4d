"""The effect of a tokenizer's normalizers on three characters, regardless of the context."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, models

from lcjax.data.tokenizing.adjacency import Adjacency, NotUnderstood
from lcjax.data.tokenizing.levels import literally

# These depend only on a character and its combining marks.
_BY_CHARACTER = frozenset(
    ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "StripAccents", "BertNormalizer", "Precompiled", "Lowercase")
)
# Letters and signs that neither change nor are changed by the character before, in any Unicode
# normal form: ASCII, Greek, Cyrillic, Japanese, Chinese, Korean, wide forms.
_PLAIN = (
    (0x20, 0x7F),
    (0x391, 0x3CA),
    (0x410, 0x450),
    (0x3001, 0x3020),
    (0x3041, 0x3095),
    (0x30A1, 0x30FB),
    (0x4E00, 0x9FA6),
    (0xAC00, 0xD7A4),
    (0xFF01, 0xFF5F),
)


class Normalizing:
    """The normalizers of a tokenizer.

    Attributes:
      prepends: whether they put a normalized space before every text.

    Raises:
      NotUnderstood: for one of them it is unknown where a text can be cut.
    """

    def __init__(self, definition: dict[str, Any] | None):
        normalizers = _flat(definition)
        self._strips = any(normalizer["type"] == "Strip" for normalizer in normalizers)
        inner = [normalizer for normalizer in normalizers if normalizer["type"] not in ("Strip", "Prepend")]
        self._needs_plain = any(normalizer["type"] in _BY_CHARACTER for normalizer in inner)
        self._patterns = [
            pattern
            for normalizer in inner
            if normalizer["type"] not in _BY_CHARACTER and (pattern := _pattern(normalizer)) is not None
        ]
        self._normalizer = _build(inner).normalizer if inner else None
        prepended = [normalizer["prepend"] for normalizer in normalizers if normalizer["type"] == "Prepend"]
        self.prepends = bool(prepended)
        if self.prepends and (
            len(prepended) > 1 or self._strips or self._normalized(" ") != self._normalized(*prepended)
        ):
            raise NotUnderstood("Prepend")

    def between(self, left: str, right: str, following: str) -> tuple[str, str] | None:
        """The normalized `left` and `right`; None if the result may depend on any neighbor."""
        characters = left, right, following
        if self._strips and (left.isspace() or right.isspace()):
            return None
        if self._needs_plain and not all(map(_is_plain, characters)):
            return None
        if any(pattern.reads(left) or pattern.reads(following) for pattern in self._patterns):
            return None
        normalized = [self._normalized(character) for character in characters]
        # Each must stay one character and be the same among the others.
        if [*map(len, normalized)] != [1, 1, 1] or self._normalized("".join(characters)) != "".join(normalized):
            return None
        return normalized[0], normalized[1]

    def _normalized(self, text: str) -> str:
        return text if self._normalizer is None else self._normalizer.normalize_str(text)


def _flat(definition: dict[str, Any] | None) -> list[dict[str, Any]]:
    if definition is None:
        return []
    if definition["type"] == "Sequence":
        return [normalizer for part in definition["normalizers"] for normalizer in _flat(part)]
    return [definition]


def _pattern(normalizer: dict[str, Any]) -> Adjacency | None:
    """The pattern of a replacement, if it can read more than one character."""
    if normalizer["type"] != "Replace":
        raise NotUnderstood(normalizer["type"])
    kind, pattern = next(iter(normalizer["pattern"].items()))
    if kind == "String" and len(pattern) == 1:
        return None
    return Adjacency(pattern if kind == "Regex" else literally(pattern))


def _build(normalizers: list[dict[str, Any]]) -> Tokenizer:
    definition = json.loads(Tokenizer(models.BPE()).to_str())
    definition["normalizer"] = {"type": "Sequence", "normalizers": normalizers}
    return Tokenizer.from_str(json.dumps(definition))


def _is_plain(character: str) -> bool:
    return character in "\n\t" or any(start <= ord(character) < stop for start, stop in _PLAIN)
