"""Encodes documents into one flat array of token ids."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from lcjax.cli.terminal import collected_warnings
from lcjax.data.document import Document
from lcjax.data.formats.chat import ChatTemplate
from lcjax.data.reading.identity import identify
from lcjax.data.reading.sources import check_data_paths, iterate_sources
from lcjax.data.tokenizing import store
from lcjax.data.tokenizing.contents import GrowingContents, find, write
from lcjax.data.tokenizing.encoding import Encoder
from lcjax.data.tokenizing.growing import GrowingTokens
from lcjax.data.tokenizing.locking import alone_with
from lcjax.data.tokenizing.progress import progress_of
from lcjax.data.tokenizing.store import StoredTokens
from lcjax.errors import InputError

if TYPE_CHECKING:  # transformers, and torch if installed, take seconds to import
    from transformers import PreTrainedTokenizerFast

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TokenizedCorpus:
    """N documents as one array: document i is `tokens[offsets[i]:offsets[i + 1]]`.

    Attributes:
      tokens: [total] int32 token ids; any array that slices like NumPy's, such as an np.memmap.
      offsets: [N + 1] int64, from 0 to total.
      names: N names, for messages.
      learned: [total] bool, the tokens that the model learns to predict; None means all, and takes
        no memory.
      was_stored: whether an earlier run had stored the tokens.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    names: Sequence[str]
    learned: np.ndarray | None = None
    was_stored: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64, tokens of each document."""
        return np.diff(self.offsets)

    def document(self, index: int) -> np.ndarray:
        """The token ids of one document, [length] int32 (a view)."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def check_ids(self, vocab_size: int) -> None:
        """Raises InputError, with the document's name, if an id is outside the vocabulary."""
        if len(self.tokens):
            at = int(np.argmax(self.tokens))
            document = int(np.searchsorted(self.offsets, at, side="right")) - 1
            _refuse_large_id(int(self.tokens[at]), vocab_size, self.names[document])


def tokenize(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast,
    *,
    append_eos: bool = True,
    vocab_size: int | None = None,
    progress: Console | None = None,
    stored: bool = False,
) -> TokenizedCorpus:
    """Encodes every document on all cores: `tokenizer(text)["input_ids"]`, then the EOS token.

    A long document is encoded in parts, at boundaries that do not change the result. If a tokenizer
    or a text allows no cut, it is encoded whole, which takes about 150 bytes of memory per byte of
    text.

    A rendered conversation is encoded as by `apply_chat_template`: no token is added. In a document
    with learned spans, a token is learned if its last character is in a span, and the EOS token if
    the text's last character is.

    Args:
      documents: what to encode; the order is preserved.
      tokenizer: a fast tokenizer; it is not changed. A BOS token is added if the tokenizer adds one
        itself.
      append_eos: whether every document that is not rendered ends with the EOS token; one that
        already does gets no second one.
      vocab_size: rows of the model's embedding; every id must be smaller. None does not check.
      progress: where to show progress: a bar on a terminal, otherwise lines; None shows nothing.
      stored: whether to read the tokens from disk if an earlier call stored them, and otherwise to
        store them; see `lcjax.data.tokenizing.store`. The arrays are mapped from the file and
        read-only.

    Raises:
      InputError: the tokenizer is not a fast one, has no EOS token, or produces ids that the model
        does not have.
    """
    encoder = _encoder(tokenizer, append_eos=append_eos)
    key = store.digest(encoder.definition(), documents) if stored and store.limit_bytes() else None
    names = tuple(document.name for document in documents)
    characters = sum(len(document.text) for document in documents)
    found = None if key is None else store.find(key)
    if (encoded := found) is None:
        with alone_with(key, progress) as has_waited:
            found = store.find(key) if key is not None and has_waited else None
            encoded = found or _encoded(documents, characters, encoder, vocab_size, key, progress)
    corpus = TokenizedCorpus(encoded.tokens, encoded.offsets, names, encoded.learned, was_stored=found is not None)
    if found is not None and vocab_size is not None:
        corpus.check_ids(vocab_size)
    return corpus


@dataclasses.dataclass(frozen=True)
class TokenizedSources:
    """The corpus of several paths, one after another.

    Attributes:
      corpus: all documents.
      counts: the number of documents of each path.
      is_text: [N] bool, whether a document is plain text, all of it learned.
    """

    corpus: TokenizedCorpus
    counts: tuple[int, ...]
    is_text: np.ndarray


def tokenize_sources(
    paths: Sequence[str | Path],
    tokenizer: PreTrainedTokenizerFast,
    template: ChatTemplate,
    *,
    documents: str = "file",
    columns: Sequence[str] = (),
    vocab_size: int | None = None,
    progress: Console | None = None,
) -> TokenizedSources:
    """Encodes the documents of paths while they are read; equal to `tokenize` of `read_sources`.

    If an earlier run has stored the tokens of files with the same content, the files are only
    hashed. Otherwise the memory does not depend on the size of the data, apart from a few bytes per
    document and one bit per token if some have no loss. The arrays are mapped from a file.

    Args:
      paths, documents, columns: as in `read_sources`.
      tokenizer, vocab_size, progress: as in `tokenize`.
      template: how conversations become text.

    Raises:
      InputError: as in `read_sources` and `tokenize`.
    """
    encoder = _encoder(tokenizer, append_eos=True)
    check_data_paths(paths)
    if documents == "related":  # files, which are joined after they are encoded
        documents = "file"
    identity = identify(paths, template, columns, encoder.definition(), documents) if store.limit_bytes() else None
    key = None if identity is None else identity.digest
    if found := _found(key, vocab_size):
        return found
    with alone_with(key, progress) as has_waited:
        if has_waited and (found := _found(key, vocab_size)):
            return found
        growing = GrowingContents(len(paths))

        def stream() -> Iterator[Document]:
            for source, document in iterate_sources(paths, template, documents, columns):
                growing.add(source, document)
                yield document

        with collected_warnings("lcjax.data.reading") as warnings:
            size = 0 if identity is None else identity.num_bytes
            tokens = _encoded(stream(), size, encoder, vocab_size, key, progress)
        contents = growing.finish(warnings)
        if identity is not None and identity.still_holds():
            write(identity.digest, growing, contents)
    corpus = TokenizedCorpus(tokens.tokens, tokens.offsets, contents.names, tokens.learned)
    return TokenizedSources(corpus, contents.counts, contents.is_text)


def _found(key: str | None, vocab_size: int | None) -> TokenizedSources | None:
    """What an earlier run has stored under a key."""
    if key is None or not (contents := find(key)) or not (tokens := store.find(key)):
        return None
    for line in contents.warnings:
        _logger.warning("%s", line)
    corpus = TokenizedCorpus(tokens.tokens, tokens.offsets, contents.names, tokens.learned, was_stored=True)
    if vocab_size is not None:
        corpus.check_ids(vocab_size)
    return TokenizedSources(corpus, contents.counts, contents.is_text)


def _encoder(tokenizer: PreTrainedTokenizerFast, *, append_eos: bool) -> Encoder:
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{type(tokenizer).__name__} is not a fast tokenizer; use a model that has a tokenizer.json")
    return Encoder(tokenizer, _eos_id(tokenizer) if append_eos else None)


def _encoded(
    documents: Iterable[Document],
    characters: int,
    encoder: Encoder,
    vocab_size: int | None,
    key: str | None,
    progress: Console | None,
) -> StoredTokens:
    with progress_of(progress, "tokenizing", characters) as advance, GrowingTokens(key) as growing:
        for part, ids, learned in encoder.encode(documents):
            if vocab_size is not None and len(ids):
                _refuse_large_id(int(ids.max()), vocab_size, part.document.name)
            growing.add(ids, learned, ends_document=part.is_last)
            advance(part.stop - part.start)
        return growing.finish()


def _eos_id(tokenizer: PreTrainedTokenizerFast) -> int:
    if not isinstance(tokenizer.eos_token_id, int):
        raise InputError("the tokenizer has no EOS token; set eos_token in the model's tokenizer_config.json")
    return tokenizer.eos_token_id


def _refuse_large_id(largest: int, vocab_size: int, document: str) -> None:
    if largest >= vocab_size:
        raise InputError(
            f"the tokenizer produces id {largest} in {document}, but the model's vocab_size is "
            f"{vocab_size}; use the tokenizer that came with the model"
        )
