"""Encodes texts by their pieces: each different piece between two cuts is encoded only once.

A text is cut wherever `Cuts` allows, usually at most ends of words. Most pieces occur many times in
a corpus, so most ids come from a table of pieces that have been encoded before. This is several
times as fast as encoding everything.
"""

from __future__ import annotations

import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lcjax.data.tokenizing.cuts import Cuts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Number of characters on either side that are encoded to test a kind of cut.
TRIED_CHARACTERS = 32
# The table is emptied when it has more pieces than this, about 50 MB. Pieces of more bytes than
# LONGEST_PIECE are not stored, because they seldom occur again.
MOST_PIECES = 1 << 18
LONGEST_PIECE = 64
# Bytes that do not occur in UTF-8, put between pieces and between texts.
_CUT, _END = b"\xff", b"\xfe"
# Characters are numbered: ASCII as usual, then others in the order in which they first occur.
# Characters without a number have no cut next to them. They are the later ones, those from
# _NUMBERED_BELOW on, such as the tens of thousands of Chinese ones, and _JOINT, between two texts.
_FIRST_OTHER, _NO_NUMBER, _NUMBERED_BELOW = 128, 0xFE, 0x2E80
_JOINT = "\U0010ffff"
# Whether a kind of cut is safe, by the numbers of the character before it and the two after it.
_UNKNOWN, _UNSAFE, _SAFE = 0, 1, 2


class Pieces:
    """Encodes texts as the tokenizer does, without special tokens around them.

    Not for use by several threads at a time.

    Args:
      backend: the tokenizer; the ids of a text must not depend on chance.
      cuts: the cuts that it allows.
    """

    def __init__(self, backend: Tokenizer, cuts: Cuts):
        self._backend, self._cuts = backend, cuts
        self._ids: dict[bytes, bytes] = {}
        self._ends: dict[bytes, bytes] = {}
        self._numbers = np.full(0x110000, _NO_NUMBER, np.uint8)
        self._numbers[:_FIRST_OTHER] = np.arange(_FIRST_OTHER)
        self._characters = [chr(code) for code in range(_FIRST_OTHER)]
        self._kinds = np.zeros(1 << 24, np.uint8)
        self._is_tried: dict[tuple[str, ...], bool] = {}

    def encode(self, texts: Sequence[str], *, with_ends: bool = False) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """The ids of each of one or more texts, [n] int32, and where the tokens end, [n] int32.

        The ends are in characters from the beginning of the text. They are None unless requested.

        Raises:
          UnicodeEncodeError: a text has half of a surrogate pair.
        """
        joined, cuts = self._divided(texts)
        divided = [text.split(_CUT) for text in joined.split(_END)]
        seldom = self._learn(set().union(*divided), with_ends)
        ids = [np.frombuffer(b"".join(map(self._ids.__getitem__, pieces)), np.int32) for pieces in divided]
        ends = self._joined_ends(texts, divided, cuts, ids) if with_ends else [None] * len(texts)
        self._forget(seldom)
        return list(zip(ids, ends, strict=True))

    def _divided(self, texts: Sequence[str]) -> tuple[bytes, np.ndarray]:
        """The texts with _END between them and _CUT between pieces; the indices of the cuts.

        An index is that of the character after the cut in the texts with one character between
        them.
        """
        content = np.frombuffer(_END.join(text.encode() for text in texts), np.uint8)
        joined = _JOINT.join(texts)
        if all(map(str.isascii, texts)):
            starts, numbers = None, content
        else:
            starts = np.flatnonzero((content & 0xC0) != 0x80)
            numbers = self._numbered(np.frombuffer(joined.encode("utf-32-le"), np.uint32))
        cuts = self._safe_cuts(texts, joined, numbers)
        at = cuts if starts is None else starts[cuts]
        if self._cuts.leave_out:
            divided = content.copy()
            divided[at] = ord(_CUT)
        else:
            divided = np.insert(content, at, ord(_CUT))
        return divided.tobytes(), cuts

    def _numbered(self, codes: np.ndarray) -> np.ndarray:
        """The number of each character, [n] uint8; characters that are new get one."""
        free = _NO_NUMBER - len(self._characters)
        if free:
            is_new = (self._numbers[codes] == _NO_NUMBER) & (codes < _NUMBERED_BELOW)
            new = np.unique(codes[is_new])[:free]
            self._numbers[new] = np.arange(len(self._characters), len(self._characters) + len(new))
            self._characters += map(chr, new.tolist())
        return self._numbers[codes]

    def _safe_cuts(self, texts: Sequence[str], joined: str, numbers: np.ndarray) -> np.ndarray:
        if len(numbers) < 3:
            return np.zeros(0, np.int64)
        kinds = numbers[:-2].astype(np.int32)
        for following in (numbers[1:-1], numbers[2:]):
            kinds <<= 8
            kinds |= following
        known = self._kinds[kinds]
        unknown = np.flatnonzero(known == _UNKNOWN)
        if len(unknown):
            new, first = np.unique(kinds[unknown], return_index=True)
            self._judge(new.tolist(), (unknown[first] + 1).tolist(), joined)
            known = self._kinds[kinds]
        is_safe = known == _SAFE
        # As in `Cuts.parts`, something other than white space must follow a cut.
        start = 0
        for text in texts:
            if text[-1:].isspace():
                is_safe[max(0, start + len(text.rstrip()) - 2) : start + len(text)] = False
            start += len(text) + 1
        return np.flatnonzero(is_safe) + 1

    def _judge(self, kinds: list[int], places: list[int], joined: str) -> None:
        """Finds out whether kinds of cuts are safe; each occurs at one of the places."""
        tried: dict[tuple[str, ...], int] = {}
        safe: list[tuple[int, tuple[str, ...]]] = []
        for kind, place in zip(kinds, places, strict=True):
            self._kinds[kind] = _UNSAFE
            numbers = kind >> 16, kind >> 8 & 0xFF, kind & 0xFF
            if max(numbers) < _NO_NUMBER:
                characters = [self._characters[number] for number in numbers]
                if self._cuts.cut_is_safe(*characters):
                    key = tuple(map(_class_of, characters))
                    safe.append((kind, key))
                    if key not in self._is_tried:
                        tried[key] = place
        self._try([*tried.items()], joined)
        for kind, key in safe:
            self._kinds[kind] = _SAFE if self._is_tried[key] else _UNSAFE

    def _try(self, cuts: list[tuple[tuple[str, ...], int]], joined: str) -> None:
        """Tests cuts, because a tokenizer may do more than its definition says."""
        texts: list[str] = []
        for _, place in cuts:
            before = joined[max(0, place - TRIED_CHARACTERS) : place]
            after = joined[place : place + TRIED_CHARACTERS]
            texts += [before + after, before, after[int(self._cuts.leave_out) :]]
        encoded = iter(self._backend.encode_batch_fast(texts, add_special_tokens=False))
        for (key, _), whole, left, right in zip(cuts, encoded, encoded, encoded, strict=True):
            self._is_tried[key] = whole.ids == left.ids + right.ids

    def _learn(self, pieces: set[bytes], with_ends: bool) -> list[bytes]:
        """Encodes the pieces that are not in the table; returns those of them that occur seldom."""
        missing = list(pieces.difference(self._ends if with_ends else self._ids))
        encode = self._backend.encode_batch if with_ends else self._backend.encode_batch_fast
        encodings = encode([piece.decode() for piece in missing], add_special_tokens=False)
        for piece, encoding in zip(missing, encodings, strict=True):
            self._ids[piece] = array.array("i", encoding.ids).tobytes()
            if with_ends:
                self._ends[piece] = array.array("i", [stop for _, stop in encoding.offsets]).tobytes()
        return [piece for piece in missing if len(piece) > LONGEST_PIECE]

    def _forget(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            del self._ids[piece]
            self._ends.pop(piece, None)
        if len(self._ids) > MOST_PIECES:
            self._ids.clear()
            self._ends.clear()

    def _joined_ends(
        self, texts: Sequence[str], divided: list[list[bytes]], cuts: np.ndarray, ids: list[np.ndarray]
    ) -> list[np.ndarray | None]:
        """The ends of the tokens of each text; an end of 0 means that a token has no character."""
        found = [self._ends[piece] for pieces in divided for piece in pieces]
        ends = np.frombuffer(b"".join(found), np.int32)
        counts = np.fromiter(map(len, found), np.int64, len(found)) // ends.itemsize
        begins = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
        starts = np.sort(np.concatenate([begins, cuts])) - np.repeat(begins, [*map(len, divided)])
        ends = np.where(ends > 0, ends + np.repeat(starts, counts), 0).astype(np.int32)
        return [*np.split(ends, np.cumsum([*map(len, ids)])[:-1])]


def _class_of(character: str) -> str:
    """What one test of a cut holds for: the character, or all letters of its case, or digits."""
    if character.isdigit():
        return "0"
    if character.isalpha():
        return "A" if character.isupper() else "a"
    return character
