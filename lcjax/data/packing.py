"""Decides which tokens share a row: a plan made from the documents' lengths alone.

Best-fit decreasing (Johnson, Near-optimal bin packing algorithms, 1973): pieces in order of
decreasing length, each into the fullest row that still has space for it.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lcjax.errors import InputError


class Piece(NamedTuple):
    """The tokens start, ..., stop - 1 of a document."""

    document: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class PackingPlan:
    """R rows of at most `max_seq_length` tokens, made of P pieces, as compact arrays.

    Attributes:
      max_seq_length: T, the tokens of a full row.
      row_offsets: [R + 1] int64; row r consists of the pieces row_offsets[r], ..., row_offsets[r +
        1] - 1.
      pieces: [P, 3] int64: document, start, stop.
      num_unlearned: number of windows that were omitted because nothing in them is learned.
    """

    max_seq_length: int
    row_offsets: np.ndarray
    pieces: np.ndarray
    num_unlearned: int = 0

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    def row(self, index: int) -> tuple[Piece, ...]:
        """The pieces of one row, in order."""
        pieces = self.pieces[self.row_offsets[index] : self.row_offsets[index + 1]]
        return tuple(Piece(*piece) for piece in pieces.tolist())

    @property
    def packed_rows(self) -> np.ndarray:
        """The indices of the rows with two or more pieces."""
        return np.flatnonzero(np.diff(self.row_offsets) > 1)

    @property
    def one_document_a_row(self) -> bool:
        """Whether no row has pieces of two documents."""
        return not len(self.packed_rows)

    @property
    def num_tokens(self) -> int:
        """Tokens in all rows, without padding."""
        return int((self.pieces[:, 2] - self.pieces[:, 1]).sum())

    @property
    def padding_share(self) -> float:
        """The fraction of all positions that is padding, in [0, 1); 0 for no rows."""
        return 1 - self.num_tokens / (len(self) * self.max_seq_length) if len(self) else 0.0


def pack(
    lengths: np.ndarray,
    max_seq_length: int,
    documents: np.ndarray | None = None,
    is_learned: Callable[[np.ndarray], np.ndarray] | None = None,
) -> PackingPlan:
    """Puts every token of every document into exactly one row.

    A document longer than T = max_seq_length is cut into consecutive windows of exactly T tokens,
    each in a separate row, and a shorter remainder. Remainders and short documents are packed by
    best-fit decreasing. The result is deterministic. Ten million documents take some seconds.

    Args:
      lengths: [N] integers, tokens of each document; a document of 0 tokens is in no row.
      max_seq_length: T, tokens in a row.
      documents: the indices of the documents to pack, each at most once; None means all.
      is_learned: from pieces [P, 3] to [P] bool; a window for which it is false is omitted and
        counted. None uses all.

    Raises:
      InputError: max_seq_length is not a positive integer.
    """
    if max_seq_length < 1:
        raise InputError(f"--max-seq-length {max_seq_length} is out of range; it must be at least 1")
    documents = np.arange(len(lengths)) if documents is None else np.asarray(documents)
    windows = _cut(documents, np.asarray(lengths)[documents], max_seq_length)
    pieces = windows if is_learned is None else windows[is_learned(windows)]
    sizes = pieces[:, 2] - pieces[:, 1]
    falling = np.argsort(-sizes, kind="stable")
    full = int(np.count_nonzero(sizes == max_seq_length))
    rows = np.concatenate([np.arange(full), full + _best_fit(sizes[falling[full:]], max_seq_length)])
    by_row = np.argsort(rows, kind="stable")
    row_offsets = np.concatenate([[0], np.cumsum(np.bincount(rows))])
    num_unlearned = len(windows) - len(pieces)
    return PackingPlan(max_seq_length, row_offsets.astype(np.int64), pieces[falling[by_row]], num_unlearned)


def nothing_learned(plan: PackingPlan) -> str:
    """Why a plan has no rows although there are documents, and what to do."""
    return (
        f"none of the {plan.num_unlearned:,} windows of {plan.max_seq_length:,} tokens has a "
        "token to learn; raise --max-seq-length, or shorten the prompts"
    )


def _cut(documents: np.ndarray, lengths: np.ndarray, max_seq_length: int) -> np.ndarray:
    """The windows of every document, [P, 3] int64."""
    windows = -(-lengths // max_seq_length)
    first = np.cumsum(windows) - windows
    start = (np.arange(windows.sum()) - np.repeat(first, windows)) * max_seq_length
    stop = np.minimum(start + max_seq_length, np.repeat(lengths, windows))
    return np.stack([np.repeat(documents, windows), start, stop], axis=1).astype(np.int64)


def _best_fit(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each piece, [P] int64; sizes must be in 1, ..., capacity, in decreasing order.

    Pieces of one size are placed together. One after the other, they would fill the fullest row
    with enough space as far as possible, then the next one.
    """
    rows_by_space: dict[int, list[int]] = collections.defaultdict(list)
    spaces = IntegerSet(capacity)
    rows = np.empty(len(sizes), dtype=np.int64)
    at = num_rows = 0

    def free(space: int, these: list[int]) -> None:
        if space and these:
            rows_by_space[space] += these
            spaces.add(space)

    first = np.flatnonzero(np.diff(sizes, prepend=0))
    for size, count in zip(sizes[first].tolist(), np.diff(first, append=len(sizes)).tolist(), strict=True):
        stop = at + count
        while at < stop:
            space = spaces.successor(size)
            each = (space or capacity) // size
            if space is None:
                space, wanted = capacity, -(-(stop - at) // each)
                taken = list(range(num_rows, num_rows + wanted))
                num_rows += wanted
            else:
                found = rows_by_space[space]
                wanted = min(len(found), -(-(stop - at) // each))
                taken = found[: -wanted - 1 : -1]
                del found[-wanted:]
                if not found:
                    spaces.remove(space)
            placed = min(stop - at, len(taken) * each)
            rows[at : at + placed] = np.repeat(taken, each)[:placed] if placed > 1 else taken
            at += placed
            free(space - each * size, taken[:-1])
            free(space - (placed - (len(taken) - 1) * each) * size, taken[-1:])
    return rows


class IntegerSet:
    """A set of integers 0, ..., limit with a fast successor.

    It is a bitmap of large words, and a bitmap of its non-empty words. Every operation accesses a
    few words of about sqrt(limit) bits; for a limit of 16M these are 64 machine words.
    """

    def __init__(self, limit: int):
        self._word_bits = max(64, 1 << ((limit.bit_length() + 1) // 2))
        self._words = [0] * (limit // self._word_bits + 1)
        self._occupied = 0

    def add(self, value: int) -> None:
        word, bit = divmod(value, self._word_bits)
        self._words[word] |= 1 << bit
        self._occupied |= 1 << word

    def remove(self, value: int) -> None:
        word, bit = divmod(value, self._word_bits)
        self._words[word] &= ~(1 << bit)
        if not self._words[word]:
            self._occupied &= ~(1 << word)

    def successor(self, value: int) -> int | None:
        """The smallest member that is at least `value`, or None."""
        word, bit = divmod(value, self._word_bits)
        rest = self._words[word] >> bit
        if rest:
            return value + _lowest_bit(rest)
        above = self._occupied >> (word + 1)
        if not above:
            return None
        word += 1 + _lowest_bit(above)
        return word * self._word_bits + _lowest_bit(self._words[word])


def _lowest_bit(word: int) -> int:
    return (word & -word).bit_length() - 1
