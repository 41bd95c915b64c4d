"""From documents to one flat array of token ids."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lcjax.data.document import Document
from lcjax.errors import InputError

if TYPE_CHECKING:  # transformers takes seconds to import, and torch with it where that is installed
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast

# Enough to keep all cores busy, little enough for the progress bar to move and for the encodings to fit in memory.
_BATCH_CHARACTERS = 4_000_000


@dataclasses.dataclass(frozen=True)
class TokenizedCorpus:
    """N documents as one array: document i is `tokens[offsets[i]:offsets[i + 1]]`.

    Attributes:
      tokens: [total] int32 token ids; any array that slices like numpy's will do, also an np.memmap.
      offsets: [N + 1] int64, from 0 to total.
      names: N names, for messages.
      learned: [total] bool, the tokens that the model learns to predict; None means all, and takes no memory.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    names: Sequence[str]
    learned: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64, tokens of each document."""
        return np.diff(self.offsets)

    def document(self, index: int) -> np.ndarray:
        """The token ids of one document, [length] int32 (a view)."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def tokenize(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast,
    *,
    append_eos: bool = True,
    vocab_size: int | None = None,
    progress: bool = False,
) -> TokenizedCorpus:
    """Encodes every document with all cores: exactly `tokenizer(text)["input_ids"]`, then the end-of-sequence token.

    A rendered conversation is encoded as `apply_chat_template` does it: no token is added. Of a document that is learned in parts,
    a token is learned if its last character is in one of them, and the end-of-sequence token if the text's is.

    Args:
      documents: what to encode; the order is kept.
      tokenizer: a fast tokenizer; it is not changed. A beginning-of-sequence token is added if it adds one itself.
      append_eos: whether every document that is not rendered shall end in the EOS token; one that does already gets no second.
      vocab_size: rows of the model's embedding; every id must lie below. None does not check.
      progress: whether to draw a progress bar on stderr.

    Raises:
      InputError: the tokenizer is not a fast one, has no EOS token, or makes ids that the model does not have.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{type(tokenizer).__name__} is not a fast tokenizer; use a model that has a tokenizer.json")
    eos = _eos_id(tokenizer) if append_eos else None
    encoded, learned = [], []
    for document, encoding in zip(documents, _encode(documents, tokenizer, progress), strict=True):
        ids = encoding.ids
        if eos is not None and not document.is_rendered and ids[-1:] != [eos]:
            ids.append(eos)
        encoded.append(np.array(ids, dtype=np.int32))
        if document.learned is not None:
            learned.append((len(encoded) - 1, _learned(document, encoding, encoded[-1], eos)))
        if vocab_size is not None and ids and max(ids) >= vocab_size:
            raise InputError(
                f"the tokenizer makes id {max(ids)} in {document.name}, the model's vocab_size is {vocab_size}; "
                "use the tokenizer that came with the model"
            )
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
    tokens = np.concatenate(encoded) if encoded else np.empty(0, dtype=np.int32)
    mask = np.ones(len(tokens), dtype=bool) if learned else None
    for document, learned_of_document in learned:
        assert mask is not None
        mask[offsets[document] : offsets[document + 1]] = learned_of_document
    return TokenizedCorpus(tokens, offsets, tuple(document.name for document in documents), mask)


def _learned(document: Document, encoding: Encoding, ids: np.ndarray, eos: int | None) -> np.ndarray:
    """Which tokens of the document are learned, [length] bool."""
    assert document.learned is not None
    spans = np.array(document.learned, dtype=np.int64).reshape(-1, 2)
    ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)[:, 1]
    # The last span that starts before the token's end; a token that a post-processor added has its end at 0.
    span = np.searchsorted(spans[:, 0], ends, side="left") - 1
    learned = np.zeros(len(ids), dtype=bool)
    learned[: len(ends)] = (span >= 0) & (ends <= spans[span, 1])
    if not document.is_rendered and len(ids) and ids[-1] == eos:
        learned[-1] = spans[-1, 1] == len(document.text)
    return learned


def _eos_id(tokenizer: PreTrainedTokenizerFast) -> int:
    if not isinstance(tokenizer.eos_token_id, int):
        raise InputError("the tokenizer has no EOS token; set eos_token in the model's tokenizer_config.json")
    return tokenizer.eos_token_id


def _encode(documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, progress: bool) -> Iterator[Encoding]:
    # The backend knows no model_max_length, so that it warns of no long document. What transformers sets on it before
    # each call is set on a copy, since the backend remembers it.
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    columns = (TextColumn("tokenizing"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("tokenizing", total=sum(len(document.text) for document in documents))
        for (is_rendered, in_parts), batch in _batches(documents):
            # The fast form does not say which characters a token stands for.
            encode = backend.encode_batch if in_parts else backend.encode_batch_fast
            yield from encode([document.text for document in batch], add_special_tokens=not is_rendered)
            bar.advance(task, sum(len(document.text) for document in batch))


def _batches(documents: Sequence[Document]) -> Iterator[tuple[tuple[bool, bool], list[Document]]]:
    """Documents in their order, some at a time that are encoded alike: (rendered, learned in parts)."""
    for kind, alike in itertools.groupby(
        documents, lambda document: (document.is_rendered, document.learned is not None)
    ):
        batch, characters = [], 0
        for document in alike:
            batch.append(document)
            characters += len(document.text)
            if characters >= _BATCH_CHARACTERS:
                yield kind, batch
                batch, characters = [], 0
        if batch:
            yield kind, batch
