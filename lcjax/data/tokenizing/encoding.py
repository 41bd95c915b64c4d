"""Encodes documents to ids and masks, part by part, on all cores and in little memory."""

from __future__ import annotations

import collections
import concurrent.futures
import copy
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tokenizers

from lcjax.data.document import Document
from lcjax.data.tokenizing.cuts import Cuts
from lcjax.data.tokenizing.pieces import Pieces
from lcjax.errors import InputError

if TYPE_CHECKING:  # transformers, and torch if installed, take seconds to import
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerFast

# One core encodes a part. Until its ids are read, the library needs about 150 bytes per character
# of it. Two batches exist at a time: one is encoded while the ids of the other are read.
PART_CHARACTERS = 1 << 14
BATCH_CHARACTERS = max(1 << 19, 4 * PART_CHARACTERS * (os.cpu_count() or 1))
# After this many characters, texts are encoded by pieces. It takes up to a second to begin with.
CHARACTERS_BEFORE_PIECES = 1 << 20


class Part(NamedTuple):
    """A part of a document to encode."""

    document: Document
    start: int
    stop: int

    @property
    def is_first(self) -> bool:
        return self.start == 0

    @property
    def is_last(self) -> bool:
        return self.stop == len(self.document.text)


class Encoded(NamedTuple):
    """The ids of a part, [n] int32, and which are learned, [n] bool; None means all."""

    part: Part
    ids: np.ndarray
    learned: np.ndarray | None


class Encoder:
    """Encodes documents as `tokenizer(text)["input_ids"]` does, and appends the EOS token.

    Args:
      tokenizer: a fast tokenizer; it is not changed.
      eos: the id with which every document that is not rendered must end; None appends none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, eos: int | None):
        # The backend does not know model_max_length, so it does not warn of long documents. What
        # transformers sets on it before each call is set on a copy, since the backend remembers it.
        self._backend: Tokenizer = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = tokenizer.split_special_tokens
        self._eos = eos
        self._characters = 0

    def definition(self) -> str:
        """Everything that determines the ids of a text."""
        return f"{tokenizers.__version__} {self._eos} {self._backend.encode_special_tokens} {self._backend.to_str()}"

    def encode(self, documents: Iterable[Document]) -> Iterator[Encoded]:
        """The parts of every document, in order."""
        last: int | None = None
        for batch, encodings in self._encoded_batches(documents):
            for part, encoding in zip(batch, encodings.of_parts, strict=True):
                ids, ends = _ids_and_ends(encoding, part)
                if not (encodings.have_special or part.document.is_rendered):
                    ids, ends = self._surrounded(part, ids, ends)
                last = int(ids[-1]) if len(ids) else None if part.is_first else last
                if part.is_last and not part.document.is_rendered and self._eos not in (None, last):
                    ids = np.append(ids, np.int32(self._eos))
                yield Encoded(part, ids, None if ends is None else self._learned(part, ids, ends))

    def _encoded_batches(self, documents: Iterable[Document]) -> Iterator[tuple[list[Part], _Encodings]]:
        """The batches with their encodings; one batch is encoded while the previous one is used."""
        with concurrent.futures.ThreadPoolExecutor(1) as worker:
            made: collections.deque[tuple[list[Part], concurrent.futures.Future[_Encodings]]]
            made = collections.deque()
            for adds_special, batch in self._batches(documents):
                made.append((batch, worker.submit(self._encodings, batch, adds_special)))
                if len(made) > 1:
                    batch, encodings = made.popleft()
                    yield batch, encodings.result()
            for batch, encodings in made:
                yield batch, encodings.result()

    def _batches(self, documents: Iterable[Document]) -> Iterator[tuple[bool, list[Part]]]:
        """Groups of parts that are encoded alike, and whether special tokens are added."""
        for kind, alike in itertools.groupby(self._parts(documents), self._kind):
            batch, characters = [], 0
            for part in alike:
                batch.append(part)
                characters += part.stop - part.start
                if characters >= BATCH_CHARACTERS:
                    yield kind[0], batch
                    batch, characters = [], 0
            if batch:
                yield kind[0], batch

    def _kind(self, part: Part) -> tuple[bool, bool]:
        is_whole = part.is_first and part.is_last
        adds_special = is_whole and not part.document.is_rendered and self._around != ([], [])
        return adds_special, part.document.learned is not None

    def _parts(self, documents: Iterable[Document]) -> Iterator[Part]:
        for document in documents:
            parts = self._divided(document) if len(document.text) > PART_CHARACTERS else [(0, len(document.text))]
            yield from (Part(document, start, stop) for start, stop in parts)

    def _divided(self, document: Document) -> Iterable[tuple[int, int]]:
        # If the omitted space is a separate token, the ends of tokens would change.
        moves_ends = document.learned is not None and self._cuts.leave_out
        if moves_ends or (self._around is None and not document.is_rendered):
            return [(0, len(document.text))]
        return self._cuts.parts(document.text, PART_CHARACTERS)

    def _encodings(self, batch: list[Part], adds_special: bool) -> _Encodings:
        # The fast form does not return which characters a token stands for.
        with_ends = batch[0].document.learned is not None
        encode = self._backend.encode_batch if with_ends else self._backend.encode_batch_fast
        texts = [part.document.text[part.start : part.stop] for part in batch]
        self._characters += sum(map(len, texts))
        try:
            if self._characters > CHARACTERS_BEFORE_PIECES and self._by_pieces(batch[0].document):
                return _Encodings(self._pieces.encode(texts, with_ends=with_ends), have_special=False)
            return _Encodings(encode(texts, add_special_tokens=adds_special), have_special=adds_special)
        except (TypeError, UnicodeEncodeError):
            for part in batch:
                refuse_surrogates(part.document)
            raise

    def _by_pieces(self, document: Document) -> bool:
        """Whether documents of this kind are encoded by pieces."""
        return (self._cuts.is_exact if document.learned is None else self._cuts.has_exact_ends) and (
            self._around is not None or document.is_rendered
        )

    @functools.cached_property
    def _cuts(self) -> Cuts:
        return Cuts(self._backend)

    @functools.cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self._backend, self._cuts)

    @functools.cached_property
    def _around(self) -> tuple[list[int], list[int]] | None:
        """The ids that the tokenizer puts before and after every text; None if it does more."""
        bare, encoding = self._backend.encode("a", add_special_tokens=False).ids, self._backend.encode("a")
        is_special = np.array([0, *encoding.special_tokens_mask, 0])
        inner = np.flatnonzero(is_special == 0)[1:-1] - 1
        if not bare or [encoding.ids[i] for i in inner] != bare or inner[-1] - inner[0] + 1 != len(bare):
            return None
        return encoding.ids[: inner[0]], encoding.ids[inner[-1] + 1 :]

    def _surrounded(self, part: Part, ids: np.ndarray, ends: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """With the ids that the tokenizer puts before and after every text."""
        if self._around in (None, ([], [])):
            return ids, ends
        before, after = self._around
        before, after = before if part.is_first else [], after if part.is_last else []
        ids = np.concatenate([np.array(before, np.int32), ids, np.array(after, np.int32)])
        return ids, None if ends is None else np.pad(ends, (len(before), len(after)))

    def _learned(self, part: Part, ids: np.ndarray, ends: np.ndarray) -> np.ndarray:
        document = part.document
        spans = np.array(document.learned, dtype=np.int64).reshape(-1, 2)
        # The last span that starts before the token's end.
        span = np.searchsorted(spans[:, 0], ends, side="left") - 1
        learned = np.zeros(len(ids), dtype=bool)
        learned[: len(ends)] = (span >= 0) & (ends <= spans[span, 1])
        if part.is_last and not document.is_rendered and len(ids) and ids[-1] == self._eos:
            learned[-1] = spans[-1, 1] == len(document.text)
        return learned


class _Encodings(NamedTuple):
    """What the parts of a batch were encoded to.

    Attributes:
      of_parts: as the library or `Pieces` returns them.
      have_special: whether they include the special tokens that the tokenizer adds.
    """

    of_parts: Sequence[Encoding | tuple[np.ndarray, np.ndarray | None]]
    have_special: bool


def _ids_and_ends(
    encoding: Encoding | tuple[np.ndarray, np.ndarray | None], part: Part
) -> tuple[np.ndarray, np.ndarray | None]:
    """The ids, and each token's end in the document, 0 for tokens that the tokenizer added."""
    if isinstance(encoding, tuple):
        ids, ends = encoding
    else:
        ids = np.array(encoding.ids, dtype=np.int32)
        ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)[:, 1]
    if part.document.learned is None or ends is None:
        return ids, None
    return ids, np.where(ends > 0, ends.astype(np.int64) + part.start, 0)


def refuse_surrogates(document: Document) -> None:
    """Raises InputError for a text that UTF-8 cannot represent, such as JSON's "\\ud800"."""
    try:
        document.text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"character {error.start + 1:,} of {document.name} is half of a surrogate pair, "
            "which no tokenizer accepts; remove it"
        ) from None
