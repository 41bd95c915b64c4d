r"""Which characters a regular expression can read one after the other.

A match, or an attempt at one, that has read c can read d next only if the expression has an atom
for d that may follow an atom for c. If it has none, the text can be cut between c and d: each part
is searched as it would be in the whole text. `\p{L}+|\s+` reads "ab" and never "b ".

The construction is Glushkov's (The abstract theory of automata, 1961): an atom is a position of the
automaton, and `_follow` is his relation. It ignores how often a quantifier repeats and which
alternative is tried first, so it can only allow too many pairs.
"""

from __future__ import annotations

import dataclasses
import functools
import re

from tokenizers import Regex, pre_tokenizers

_ESCAPED_CLASS = re.compile(
    r"\\(?:[sSdDwWhHrntfvae]|[pP]\{\^?\w+\}|x\{[0-9a-fA-F]+\}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^\w\s])"
)
_QUANTIFIER = re.compile(r"[*+?]|\{(\d+)(?:,\d*)?\}|\{,\d+\}")


class NotUnderstood(Exception):
    """The tokenizer has a part for which it is unknown where a text can be cut."""


@dataclasses.dataclass(frozen=True)
class _Part:
    """A part of the expression, described by the numbers of its atoms.

    Attributes:
      is_optional: whether it can match without reading anything; an assertion reads nothing.
      is_skippable: whether it certainly matches without reading anything.
      first, last: atoms that can read its first and its last character.
      single: atoms that can each read a whole match, regardless of the context.
    """

    is_optional: bool
    is_skippable: bool
    first: frozenset[int] = frozenset()
    last: frozenset[int] = frozenset()
    single: frozenset[int] = frozenset()


class Adjacency:
    """The pairs of characters that a regular expression can read one after the other.

    The syntax is Oniguruma's.

    Raises:
      NotUnderstood: the expression uses a lookbehind, an anchor of a line, word or text, or a
        back-reference, or it can match the empty string.
    """

    def __init__(self, pattern: str):
        self._pattern = pattern
        self._at = 0
        self._atoms: list[pre_tokenizers.PreTokenizer] = []
        self._follow: dict[int, set[int]] = {}
        whole = self._alternatives("")
        if self._at < len(pattern) or whole.is_optional:
            raise NotUnderstood(pattern)
        self._single = whole.single
        self._atoms_of = functools.lru_cache(maxsize=100_000)(self._find_atoms)

    def reads(self, character: str) -> bool:
        """Whether any atom reads the character."""
        return bool(self._atoms_of(character))

    def reads_both(self, left: str, right: str) -> bool:
        """Whether an attempt that has read `left` can read `right` next."""
        if (
            len(left.casefold()) > 1 or len(right.casefold()) > 1
        ):  # case-insensitively, "ss" may match one such character
            return True
        rights = self._atoms_of(right)
        return any(not rights.isdisjoint(self._follow[atom]) for atom in self._atoms_of(left))

    def surely_matches(self, character: str) -> bool:
        """Whether a match always covers the character, regardless of the context."""
        return not self._single.isdisjoint(self._atoms_of(character))

    def _find_atoms(self, character: str) -> frozenset[int]:
        return frozenset(i for i, atom in enumerate(self._atoms) if not atom.pre_tokenize_str(character))

    def _alternatives(self, flags: str) -> _Part:
        parts = [self._sequence(flags)]
        while self._takes("|"):
            parts.append(self._sequence(flags))
        return _Part(
            any(part.is_optional for part in parts),
            any(part.is_skippable for part in parts),
            *(frozenset().union(*(getattr(part, name) for part in parts)) for name in ("first", "last", "single")),
        )

    def _sequence(self, flags: str) -> _Part:
        whole = _Part(True, True)
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            part = self._quantified(flags)
            self._connect(whole.last, part.first)
            whole = _Part(
                whole.is_optional and part.is_optional,
                whole.is_skippable and part.is_skippable,
                whole.first | part.first if whole.is_optional else whole.first,
                whole.last | part.last if part.is_optional else part.last,
                (whole.single if part.is_skippable else frozenset())
                | (part.single if whole.is_skippable else frozenset()),
            )
        return whole

    def _quantified(self, flags: str) -> _Part:
        part = self._item(flags)
        while (quantifier := _QUANTIFIER.match(self._pattern, self._at)) is not None:
            self._at = quantifier.end()
            self._connect(part.last, part.first)
            least = int(quantifier[1] or 0) if quantifier[0].startswith("{") else int(quantifier[0] == "+")
            # A possessive quantifier, as in `a?+a`, may leave nothing for what follows.
            gives_back = not self._takes("+")
            self._takes("?")
            part = dataclasses.replace(
                part,
                is_optional=part.is_optional or least == 0,
                is_skippable=(part.is_skippable or least == 0) and gives_back,
                single=part.single if least <= 1 else frozenset(),
            )
        return part

    def _item(self, flags: str) -> _Part:
        for opening in ("(?:", "(?i:", "(?>", "(?=", "(?!"):
            if self._takes(opening):
                return self._group(opening, "(?i)" if opening == "(?i:" else flags)
        if self._pattern.startswith("(?", self._at):
            raise NotUnderstood(self._pattern)
        return self._group("(", flags) if self._takes("(") else self._atom(flags)

    def _group(self, opening: str, flags: str) -> _Part:
        part = self._alternatives(flags)
        if not self._takes(")"):
            raise NotUnderstood(self._pattern)
        if opening in ("(?=", "(?!"):  # a lookahead consumes nothing, so nothing follows it
            return _Part(True, False, part.first)
        return dataclasses.replace(part, is_skippable=False, single=frozenset()) if opening == "(?>" else part

    def _atom(self, flags: str) -> _Part:
        source = self._source_of_atom()
        if flags and (not source.isascii() or re.search(r"\\[a-zA-Z]|\[\^", source)):
            # case-insensitively, a class with "ß" matches "ss" as well
            raise NotUnderstood(self._pattern)
        try:
            atom = pre_tokenizers.Split(Regex(flags + source), "removed")
        except Exception:  # the library's own class, which it does not export
            raise NotUnderstood(self._pattern) from None
        number = len(self._atoms)
        self._atoms.append(atom)
        self._follow[number] = set()
        only = frozenset({number})
        return _Part(False, False, only, only, only)

    def _source_of_atom(self) -> str:
        start, character = self._at, self._pattern[self._at]
        if character == "[":
            self._at = self._end_of_class(start)
        elif character == "\\":
            escaped = _ESCAPED_CLASS.match(self._pattern, start)
            if escaped is None:
                raise NotUnderstood(self._pattern)
            self._at = escaped.end()
        elif character in "^$*+?{}])" or len(character.casefold()) > 1:
            raise NotUnderstood(self._pattern)
        else:
            self._at += 1
        return self._pattern[start : self._at]

    def _end_of_class(self, start: int) -> int:
        at = start + (2 if self._pattern.startswith("[^", start) else 1)
        if self._pattern.startswith("]", at):
            raise NotUnderstood(self._pattern)
        depth = 1
        while depth and at < len(self._pattern):
            character = self._pattern[at]
            depth += (character == "[") - (character == "]")
            at += 2 if character == "\\" else 1
        if depth:
            raise NotUnderstood(self._pattern)
        return at

    def _connect(self, lasts: frozenset[int], firsts: frozenset[int]) -> None:
        for last in lasts:
            self._follow[last] |= firsts

    def _takes(self, text: str) -> bool:
        taken = self._pattern.startswith(text, self._at)
        self._at += len(text) if taken else 0
        return taken
