"""Which way of forming documents brings text together that refers to each other?

For each value of --documents, the share of the tokens is counted that repeat an n-gram of their
window from NEAREST or more tokens before, and no nearer. The control exchanges the joined texts at
random, between documents of about the same lengths. What repeats there as well is common to all
texts of the corpus, so joining related ones does not explain it.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lcjax.audit.reuse import repeats_from_afar
from lcjax.data import TokenizedCorpus
from lcjax.data.joining.chapters import natural
from lcjax.data.joining.order import dependency_order
from lcjax.data.joining.related import filled, related_groups
from lcjax.data.reading.files import read_text
from lcjax.data.reading.repositories import roots

# More tokens take longer, and change little.
MOST_TOKENS = 1 << 20
# Random exchanges, of which the mean is taken.
_EXCHANGES = 3
# Tokens in a block of the shuffled text in which related texts are sought for the control.
_BLOCK = 256

Groups = list[list[int]]


@dataclasses.dataclass(frozen=True)
class Joining:
    """The result of a way of forming documents; shares are of all tokens, in [0, 1].

    Attributes:
      documents: the value of --documents.
      number: of the documents that are formed.
      repeats: the tokens that repeat text of their window from afar.
      by_chance: the same for the control.
    """

    documents: str
    number: int
    repeats: float
    by_chance: float

    @property
    def gain(self) -> float:
        """What repeats because related texts were joined; around 0 if they are not related."""
        return self.repeats - self.by_chance


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All ways that join anything, compared with separate texts.

    Attributes:
      tokens: that were counted.
      max_seq_length: T, the tokens of a window.
      separate: as `Joining.repeats`, without joining.
      joinings: one for each way.
    """

    tokens: int
    max_seq_length: int
    separate: float
    joinings: tuple[Joining, ...]


def compare(
    corpus: TokenizedCorpus, paths: Sequence[str], max_seq_length: int, max_tokens: int = MOST_TOKENS
) -> Comparison:
    """Compares separate texts with folders, repositories and related texts.

    Related texts share words by definition, even by chance. So their control also has what the same
    search adds in the same text shuffled in blocks, without relations.

    Args:
      corpus: with every file and record as a document.
      paths: where it was read from.
      max_seq_length: T, the tokens of a window.
      max_tokens: the most tokens to count, from the beginning of the corpus, in whole documents.
    """
    last = max(1, int(np.searchsorted(corpus.offsets, max_tokens, side="right")) - 1)
    offsets = corpus.offsets[: last + 1]
    corpus = TokenizedCorpus(np.asarray(corpus.tokens[: offsets[-1]]), offsets, corpus.names[:last])
    tokens = max(1, len(corpus.tokens))
    names = {number: Path(name) for number, name in enumerate(corpus.names)}
    files = {number: path for number, path in names.items() if path.is_file()}
    found = []
    for way, groups in (("folder", _folders(files)), ("repository", _repositories(files, paths))):
        whole = groups + [[number] for number in sorted(names.keys() - files.keys())]
        if any(len(group) > 1 for group in groups):
            repeats, chance = _repeats(whole, corpus, max_seq_length), _by_chance(whole, corpus, max_seq_length)
            found.append(Joining(way, len(whole), repeats / tokens, chance / tokens))
    groups, repeats, chance = _related(corpus, max_seq_length)
    if len(groups) < len(corpus):
        _, shuffled, of_shuffled = _related(_shuffled(corpus), max_seq_length)
        chance += max(0.0, shuffled - of_shuffled)
        found.append(Joining("related", len(groups), repeats / tokens, chance / tokens))
    separate = _repeats([[number] for number in names], corpus, max_seq_length)
    return Comparison(len(corpus.tokens), max_seq_length, separate / tokens, tuple(found))


def _folders(files: dict[int, Path]) -> Groups:
    folders: dict[Path, list[int]] = collections.defaultdict(list)
    for number in sorted(files, key=lambda number: natural(files[number].name)):
        folders[files[number].parent].append(number)
    return list(folders.values())


def _repositories(files: dict[int, Path], paths: Sequence[str]) -> Groups:
    groups, others = [], dict(files)
    for root in (root for path in paths if Path(path).is_dir() for root in roots(Path(path))):
        inside = {path.relative_to(root).as_posix(): n for n, path in others.items() if path.is_relative_to(root)}
        if inside:
            order = dependency_order({name: read_text(others[number]) for name, number in inside.items()})
            groups.append([inside[name] for name in order])
            others = {number: path for number, path in others.items() if number not in groups[-1]}
    return groups + [[number] for number in others]


def _related(corpus: TokenizedCorpus, max_seq_length: int) -> tuple[Groups, int, float]:
    """Groups of related texts, what repeats in them, and in random groups."""
    groups = related_groups(corpus.tokens, corpus.offsets, range(len(corpus)), max_seq_length)
    repeats = _repeats(groups, corpus, max_seq_length)
    return groups, repeats, _by_chance(groups, corpus, max_seq_length, fills_windows=True)


def _repeats(groups: Groups, corpus: TokenizedCorpus, max_seq_length: int) -> int:
    """Counts the tokens that repeat text from afar in the windows of joined documents."""
    tokens = np.concatenate([corpus.document(number) for group in groups for number in group])
    ends = np.cumsum([sum(int(corpus.lengths[number]) for number in group) for group in groups]).tolist()
    starts = [at for start, end in zip([0, *ends], ends, strict=False) for at in range(start, end, max_seq_length)]
    windows = TokenizedCorpus(tokens, np.array([*starts, len(tokens)], dtype=np.int64), [""] * len(starts))
    return repeats_from_afar(windows)


def _by_chance(groups: Groups, corpus: TokenizedCorpus, max_seq_length: int, *, fills_windows: bool = False) -> float:
    """The mean of `_repeats` if the texts of groups of several are exchanged at random."""
    single = [group for group in groups if len(group) == 1]
    several = [group for group in groups if len(group) > 1]
    counts = []
    for seed in range(_EXCHANGES):
        order = np.random.RandomState(seed).permutation([number for group in several for number in group]).tolist()
        if fills_windows:
            exchanged = filled(order, corpus.offsets, max_seq_length)
        else:
            exchanged = list(of_lengths([int(corpus.lengths[group].sum()) for group in several], order, corpus.lengths))
        counts.append(_repeats(single + exchanged, corpus, max_seq_length))
    return float(np.mean(counts))


def of_lengths(totals: Sequence[int], order: Sequence[int], lengths: np.ndarray) -> Iterator[list[int]]:
    """Consecutive texts in groups of about the given lengths; a text is where its middle is.

    Args:
      totals: tokens of each group.
      order: the texts.
      lengths: tokens of every text.
    """
    sizes = lengths[order]
    group = np.searchsorted(np.cumsum(totals), np.cumsum(sizes) - sizes / 2)
    for index in range(len(totals)):
        if members := [order[place] for place in np.flatnonzero(group == index).tolist()]:
            yield members


def _shuffled(corpus: TokenizedCorpus) -> TokenizedCorpus:
    """The text in blocks shuffled across documents, without relations between documents."""
    starts = np.random.RandomState(0).permutation(np.arange(0, len(corpus.tokens), _BLOCK))
    tokens = np.concatenate([corpus.tokens[start : start + _BLOCK] for start in starts.tolist()])
    return TokenizedCorpus(tokens, corpus.offsets, corpus.names)
