"""Where a text can be cut so that its parts, encoded separately, give the ids of the whole.

Three characters decide: the one before the cut and the two after it. None of the tokenizer's steps
(added tokens, normalizers, pre-tokenizers, the model) may read across the cut, regardless of the
text around it. A step for which this is unknown forbids every cut.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lcjax.data.tokenizing.adjacency import NotUnderstood
from lcjax.data.tokenizing.levels import Between, Levels
from lcjax.data.tokenizing.normalizing import Normalizing

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Number of characters on either side that are encoded to test a kind of cut.
TRIED_CHARACTERS = 256


class Cuts:
    """The cuts that one tokenizer allows."""

    def __init__(self, backend: Tokenizer):
        self._backend = backend
        definition = json.loads(backend.to_str())
        self._added = _AddedTokens(definition["added_tokens"], backend)
        self._trims_ends = _trims_ends(definition["post_processor"])
        self._depends_on_chance = bool(definition["model"].get("dropout"))
        self._is_tried: dict[tuple[str, str, str], bool] = {}
        self._allows = functools.lru_cache(maxsize=1 << 16)(self.cut_is_safe)
        try:
            self._levels = Levels(definition["pre_tokenizer"])
            self._normalizing = Normalizing(definition["normalizer"])
            self._merging = _Merging(definition["model"]) if not self._levels.is_bytes else None
        except NotUnderstood:
            self._levels = None

    def parts(self, text: str, length: int) -> Iterator[tuple[int, int]]:
        """The text's parts (start, stop), of about `length` characters each.

        A part is longer if there is no earlier cut. A space that the tokenizer puts before every
        text may be omitted between two parts.
        """
        start, last = 0, len(text.rstrip()) - 2
        while self._levels is not None and len(text) - start > length:
            cut = self._find(text, start + max(1, length // 2), start + length, last)
            if cut is None:
                break
            yield start, cut
            start = cut + int(self.leave_out)
        yield start, len(text)

    @property
    def is_exact(self) -> bool:
        """Whether texts may be cut at all, and the same text always has the same ids."""
        return self._levels is not None and not self._depends_on_chance

    @property
    def has_exact_ends(self) -> bool:
        """Whether it is also known where the tokens of a piece end, wherever the piece is.

        It is not if the tokenizer puts a space before a text, or leaves the space at the beginning
        of a text out of the first token's offsets.
        """
        return self.is_exact and not (self.leave_out or self._trims_ends)

    @property
    def leave_out(self) -> bool:
        """Whether the space after a cut is omitted because the tokenizer puts one there itself."""
        return self._levels is not None and self._normalizing.prepends

    def _find(self, text: str, least: int, most: int, last: int) -> int | None:
        """The last cut from `least` to `most`, otherwise the first one after, up to `last`."""
        for cut in itertools.chain(range(min(most, last), least - 1, -1), range(most + 1, last + 1)):
            if self._allows(text[cut - 1], text[cut], text[cut + 1]) and self._is_right(text, cut):
                return cut
        return None

    def _is_right(self, text: str, cut: int) -> bool:
        """Whether a cut is really harmless, tested when its kind first occurs.

        A tokenizer may do more than its definition says.
        """
        kind = text[cut - 1], text[cut], text[cut + 1]
        if kind not in self._is_tried:
            before = text[max(0, cut - TRIED_CHARACTERS) : cut]
            after = text[cut : cut + TRIED_CHARACTERS]
            whole, left, right = (
                self._backend.encode(part, add_special_tokens=False).ids
                for part in (before + after, before, after[int(self.leave_out) :])
            )
            self._is_tried[kind] = whole == left + right
        return self._is_tried[kind]

    def cut_is_safe(self, left: str, right: str, following: str) -> bool:
        assert self._levels is not None
        if self._levels.needs_space or self._normalizing.prepends:
            # The tokenizer adds a space before some text beginnings and not before others.
            if right != " " or following.isspace():
                return False
            # The space next to an added token may be treated differently from the one put before a
            # text.
            if self._normalizing.prepends and (self._added.end_with(left) or self._added.begin_with(following)):
                return False
        normalized = self._normalizing.between(left, right, following)
        if normalized is None or not (self._added.allow(left, right) and self._added.allow(*normalized)):
            return False
        between = self._levels.between(*normalized)
        if between is Between.OPEN and self._merging is not None:
            return not self._merging.may_join(*map(self._levels.as_read, normalized))
        return between is Between.BOUNDARY


class _Merging:
    """Which characters of one word the model may merge into one token.

    Byte-pair encoding makes tokens of its vocabulary by merging neighbors. If no token contains
    both characters, the two sides are independent. A unigram model adds scores over the whole word,
    and rounding can decide. Only the necessary part of the vocabulary is stored, because it can
    have 100 MB.
    """

    def __init__(self, model: dict[str, Any]):
        settings = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
        self._is_understood = model["type"] == "BPE" and not any(model.get(setting) for setting in settings)
        if not self._is_understood:
            return
        vocabulary = model["vocab"]
        self._characters = frozenset(token for token in vocabulary if len(token) == 1)
        self._pairs = frozenset(token[i : i + 2] for token in vocabulary for i in range(len(token) - 1))
        names = {f"<0x{byte:02X}>" for byte in range(256)}
        merged = (merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"])
        self._knows_all = (
            model["byte_fallback"]
            and names <= vocabulary.keys()
            and not any(names.intersection(pair) for pair in merged)
        )

    def may_join(self, left: str, right: str) -> bool:
        """Whether one token may contain both; two unknown characters may become one such token."""
        if not self._is_understood:
            return True
        are_known = self._knows_all or (left in self._characters and right in self._characters)
        return not are_known or left + right in self._pairs


class _AddedTokens:
    """The tokens that are searched for in a text before any other step."""

    def __init__(self, tokens: list[dict[str, Any]], backend: Tokenizer):
        contents = {token["content"] for token in tokens}
        if backend.normalizer is not None:  # some are searched for in the normalized text
            contents |= {backend.normalizer.normalize_str(content) for content in contents}
        self._firsts = {content[:1] for content in contents}
        self._lasts = {content[-1:] for content in contents}
        self._pairs = {content[i : i + 2] for content in contents for i in range(len(content) - 1)}
        # They take the white space on one side, or must not have a letter there.
        self._strips_before = any(token["lstrip"] for token in tokens)
        self._strips_after = any(token["rstrip"] for token in tokens)
        self._are_words = any(token["single_word"] for token in tokens)

    def begin_with(self, character: str) -> bool:
        return character in self._firsts

    def end_with(self, character: str) -> bool:
        return character in self._lasts

    def allow(self, left: str, right: str) -> bool:
        """Whether no added token reads both characters."""
        if self._are_words and (_is_of_word(right) or right in self._firsts):
            return False
        if (self._strips_before and left.isspace()) or (self._strips_after and right.isspace()):
            return False
        return left + right not in self._pairs


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character == "_" or not character.isascii()


def _trims_ends(post_processor: Any) -> bool:
    """Whether a post-processor changes offsets; some do so only at the beginning of a text."""
    if isinstance(post_processor, dict):
        return bool(post_processor.get("trim_offsets")) or any(map(_trims_ends, post_processor.values()))
    return isinstance(post_processor, list) and any(map(_trims_ends, post_processor))
