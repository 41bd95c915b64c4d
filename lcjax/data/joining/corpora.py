"""Joins encoded documents into longer ones, in a file where tokens are stored."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lcjax.data.document import Document
from lcjax.data.joining.related import related_groups
from lcjax.data.tokenizing import store
from lcjax.data.tokenizing.contents import GrowingContents, find, write
from lcjax.data.tokenizing.growing import GrowingTokens

if TYPE_CHECKING:
    from lcjax.data.tokens import TokenizedSources

# Changes whenever the same documents are joined differently than before.
_FORMAT = "lcjax related 1"


def join_related(sources: TokenizedSources, max_seq_length: int) -> TokenizedSources:
    """The sources with related texts of each joined, as in `related_groups`.

    A text ends with its EOS token, after which the next one begins. Records with a prompt or a
    conversation remain as they are. A joined document has the name of its first.

    Args:
      sources: encoded documents.
      max_seq_length: T, the tokens of a window.
    """
    key = _key(sources, max_seq_length) if store.limit_bytes() else None
    corpus = sources.corpus
    if key is not None and (contents := find(key)) and (tokens := store.find(key)):
        joined = dataclasses.replace(
            corpus, tokens=tokens.tokens, offsets=tokens.offsets, names=contents.names, learned=tokens.learned
        )
        return dataclasses.replace(sources, corpus=joined, counts=contents.counts, is_text=contents.is_text)
    growing = GrowingContents(len(sources.counts))
    with GrowingTokens(key) as ids:
        start = 0
        for source, count in enumerate(sources.counts):
            documents = np.arange(start, start + count)
            texts = documents[sources.is_text[documents]].tolist()
            groups = related_groups(corpus.tokens, corpus.offsets, texts, max_seq_length)
            groups += [[document] for document in documents[~sources.is_text[documents]].tolist()]
            for group in groups:
                _add(group, source, sources, ids, growing)
            start += count
        tokens = ids.finish()
    contents = growing.finish([])
    if key is not None:
        write(key, growing, contents)
    joined = dataclasses.replace(
        corpus, tokens=tokens.tokens, offsets=tokens.offsets, names=contents.names, learned=tokens.learned
    )
    return dataclasses.replace(sources, corpus=joined, counts=contents.counts, is_text=contents.is_text)


def _add(
    group: Sequence[int], source: int, sources: TokenizedSources, ids: GrowingTokens, growing: GrowingContents
) -> None:
    corpus = sources.corpus
    for document in group:
        span = slice(corpus.offsets[document], corpus.offsets[document + 1])
        learned = None if corpus.learned is None else corpus.learned[span]
        ids.add(corpus.tokens[span], learned, ends_document=document == group[-1])
    name = corpus.names[group[0]] + (f" and {len(group) - 1} related" if len(group) > 1 else "")
    is_text = bool(sources.is_text[group[0]])
    growing.add(source, Document(name, "", None if is_text else ()))


def _key(sources: TokenizedSources, max_seq_length: int) -> str:
    corpus = sources.corpus
    digest = hashlib.blake2b(f"{_FORMAT} {max_seq_length} {sources.counts}".encode(), digest_size=16)
    for array in (corpus.offsets, corpus.tokens, sources.is_text, corpus.learned):
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    for name in corpus.names:
        digest.update(f"{name}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
