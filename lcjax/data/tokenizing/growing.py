"""Collects tokens piece by piece into one array."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from lcjax.data.tokenizing import store
from lcjax.data.tokenizing.store import StoredTokens, UnfinishedFile

_logger = logging.getLogger(__name__)


class GrowingTokens:
    """Documents' ids and masks: in a file if there is a key, otherwise in memory, 4 bytes a token.

    Args:
      key: of the file; None stores nothing.
    """

    def __init__(self, key: str | None):
        self._file: UnfinishedFile | None = None
        self._ids: list[np.ndarray] = []
        self._lengths: list[int] = []
        self._masks: list[np.ndarray | None] = []
        self._total = 0
        self._offsets = [0]
        if key is not None:
            try:
                self._file = UnfinishedFile(key)
            except OSError as error:
                self._continue_in_memory(error)

    def __enter__(self) -> GrowingTokens:
        return self

    def __exit__(self, *exception) -> None:
        if self._file is not None:
            self._file.discard()

    def add(self, ids: np.ndarray, learned: np.ndarray | None, *, ends_document: bool) -> None:
        """Appends ids, [n] int32, and which of them are learned, [n] bool; None means all."""
        self._lengths.append(len(ids))
        self._masks.append(None if learned is None else np.packbits(learned))
        self._total += len(ids)
        if ends_document:
            self._offsets.append(self._total)
        if self._file is not None:
            try:
                return self._file.add(ids)
            except OSError as error:
                self._continue_in_memory(error)
        self._ids.append(ids)

    def finish(self) -> StoredTokens:
        """All tokens; nothing can be added afterwards."""
        offsets = np.array(self._offsets, dtype=np.int64)
        has_masks = any(mask is not None for mask in self._masks)
        if self._file is not None and self._total:
            try:
                return self._file.finish(offsets, self._unpacked() if has_masks else None)
            except OSError as error:
                self._continue_in_memory(error)
        tokens, stop = np.empty(self._total, dtype=np.int32), self._total
        while self._ids:  # backwards, so that each array is freed once it is copied
            ids = self._ids.pop()
            tokens[stop - len(ids) : stop] = ids
            stop -= len(ids)
        learned = np.empty(self._total if has_masks else 0, dtype=bool)
        if has_masks:
            np.concatenate(list(self._unpacked()), out=learned)
        return StoredTokens(tokens, offsets, learned if has_masks else None)

    def _unpacked(self) -> Iterator[np.ndarray]:
        for length, mask in zip(self._lengths, self._masks, strict=True):
            yield np.ones(length, bool) if mask is None else np.unpackbits(mask, count=length).view(bool)

    def _continue_in_memory(self, error: OSError) -> None:
        """Reads the content of the file back into memory."""
        _logger.warning(
            "the tokens are not stored for the next run: %s cannot be written (%s)", store.folder(), error.strerror
        )
        if self._file is not None:
            self._ids = [self._file.read_back()]
            self._file.discard()
            self._file = None
