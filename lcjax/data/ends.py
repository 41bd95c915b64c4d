"""Holds out the end of a single long text, if there are no two documents to split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lcjax.data.tokens import TokenizedCorpus

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast

# With fewer than two tokens, none is predicted.
_FEWEST_TOKENS = 2
# How far back to look for a better place to cut; also at most half of the held-out part.
_LOOK_BACK = 4096
# The most tokens of one UTF-8 character.
_CHARACTER_TOKENS = 4


def end_to_hold_out(ids: np.ndarray, fraction: float, tokenizer: PreTrainedTokenizerFast) -> int | None:
    """Where the held-out end of a text begins.

    Args:
      ids: [n] token ids of the text.
      fraction: the share of the tokens to hold out, in (0, 1); up to half as much again may be held
        out to find a good place to cut.

    Returns:
      the index of the first token of the end: the last one in reach that follows a blank line,
      otherwise one that follows a newline, otherwise one that starts a character. None if the text
      is too short to leave two tokens on either side.
    """
    held_out = max(_FEWEST_TOKENS, round(fraction * len(ids)))
    latest = len(ids) - held_out
    if latest < _FEWEST_TOKENS:
        return None
    earliest = max(latest - min(_LOOK_BACK, held_out // 2), _FEWEST_TOKENS)
    places = range(latest, earliest - 1, -1)
    before = tokenizer.batch_decode([ids[place - 2 : place].tolist() for place in places])
    for ending in ("\n\n", "\n"):
        for place, text in zip(places, before, strict=True):
            if text.endswith(ending):
                return place
    # With byte tokens, a text that begins inside a character decodes to U+FFFD first.
    after = tokenizer.batch_decode([ids[place : place + _CHARACTER_TOKENS].tolist() for place in places])
    whole = (place for place, text in zip(places, after, strict=True) if not text.startswith("\ufffd"))
    return next(whole, latest)


def cut_documents(corpus: TokenizedCorpus, cuts: Mapping[int, int]) -> TokenizedCorpus:
    """The corpus with some documents cut in two; the indices of later documents increase.

    Args:
      cuts: from a document's index to the index, in it, of the token that begins the second part.
    """
    after = [document + 1 for document in cuts]
    at = [corpus.offsets[document] + token for document, token in cuts.items()]
    names: list[str] = []
    for document, name in enumerate(corpus.names):
        names += [name, f"{name} (its end)"] if document in cuts else [name]
    return dataclasses.replace(corpus, offsets=np.insert(corpus.offsets, after, at), names=tuple(names))
