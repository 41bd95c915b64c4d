"""Chooses what is held out for evaluation: whole documents, or the end of the only one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lcjax.data.ends import cut_documents, end_to_hold_out
from lcjax.data.tokens import TokenizedCorpus, TokenizedSources
from lcjax.errors import InputError

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class Split:
    """A corpus in two parts.

    Attributes:
      corpus: its documents; those whose ends are held out are cut in two.
      train: indices of the documents to train on, source by source, each sorted.
      held_out: indices of the held-out documents, sorted.
      ends: names of the documents whose ends are held out.
    """

    corpus: TokenizedCorpus
    train: tuple[np.ndarray, ...]
    held_out: np.ndarray
    ends: tuple[str, ...]


def split_corpus(
    sources: TokenizedSources,
    tokenizer: PreTrainedTokenizerFast,
    fraction: float,
    seed: int,
    *,
    by_source: bool,
) -> Split:
    """Holds out whole documents; if a source is a single text, its end.

    Args:
      sources: the documents of all sources, one after another.
      by_source: whether each source needs something to train on, as in a mixture; otherwise all
        sources count as one.

    Raises:
      InputError: the fraction or the seed is out of range, or the only document is not a text that
        can be cut.
    """
    check_fraction(fraction, seed)
    corpus = sources.corpus
    counts = list(sources.counts) if by_source else [len(corpus)]
    first = np.cumsum([0, *counts])
    alone = [start for start, count in zip(first[:-1].tolist(), counts, strict=True) if count == 1 and fraction > 0]
    cuts = _cuts(corpus, [document for document in alone if sources.is_text[document]], fraction, tokenizer)
    # A document alone in its source is not drawn. It is cut; if it is a record, it is trained on.
    drawn = np.setdiff1d(np.arange(len(corpus)), alone)
    _, held_out = split_held_out(len(drawn), 0 if cuts and not len(drawn) else fraction, seed)
    train = np.setdiff1d(np.arange(len(corpus)), drawn[held_out])
    cut = np.array(list(cuts), dtype=np.int64)
    moved = np.arange(len(corpus)) + np.searchsorted(cut, np.arange(len(corpus)))
    return Split(
        cut_documents(corpus, cuts) if cuts else corpus,
        tuple(moved[part] for part in np.split(train, np.searchsorted(train, first[1:-1]))),
        np.sort(np.concatenate([moved[drawn[held_out]], moved[cut] + 1])),
        tuple(corpus.names[document] for document in cuts),
    )


def _cuts(
    corpus: TokenizedCorpus, texts: Sequence[int], fraction: float, tokenizer: PreTrainedTokenizerFast
) -> dict[int, int]:
    """For each of these texts that is long enough, where its held-out end begins."""
    ends = {index: end_to_hold_out(corpus.document(index), fraction, tokenizer) for index in texts}
    return {index: end for index, end in ends.items() if end is not None}


def check_fraction(fraction: float, seed: int) -> None:
    """Raises InputError if a fraction to hold out, or a seed, is out of range."""
    if not 0 <= fraction < 1:
        raise InputError(f"--eval-fraction {fraction} is out of range; it must be at least 0 and below 1")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed} is out of range; it must be at least 0 and below 2^32")


def split_held_out(n_documents: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws whole documents, so that no held-out text is trained on.

    Args:
      n_documents: N, at least 1.
      fraction: share of the documents to hold out, in [0, 1); 0 holds out none, any more at least
        one.
      seed: 0, ..., 2^32 - 1; the same seed draws the same documents, with every version of NumPy.

    Returns:
      the indices of the documents to train on (at least one) and of those held out, each sorted,
      int64.

    Raises:
      InputError: the fraction or the seed is out of range, or there is only one document to split.
    """
    check_fraction(fraction, seed)
    if fraction > 0 and n_documents < 2:
        raise InputError(
            f"--eval-fraction {fraction} needs two documents or more, or one long enough text; "
            "add more, or give --eval-fraction 0"
        )
    held_out = min(max(1, round(fraction * n_documents)), n_documents - 1) if fraction > 0 else 0
    # RandomState rather than default_rng, because its stream is frozen (NEP 19): a resumed run must
    # draw the same parts.
    order = np.random.RandomState(seed).permutation(n_documents).astype(np.int64)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
