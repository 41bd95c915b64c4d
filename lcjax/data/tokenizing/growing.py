"""Collects tokens piece by piece into one array."""

from __future__ import annotations

import array
import logging
from collections.abc import Iterator

import numpy as np

from lcjax.data.tokenizing import store
from lcjax.data.tokenizing.store import StoredTokens, UnfinishedFile

_logger = logging.getLogger(__name__)


class _Masks:
    """Masks of consecutive tokens in one bit per token, or none where all tokens are learned."""

    # Parts are joined, because an array takes about a hundred bytes in addition to its content.
    _JOINED = 1 << 20

    def __init__(self):
        self._packed: list[tuple[int, np.ndarray | None]] = []
        self._parts: list[np.ndarray | None] = []
        self._lengths: list[int] = []
        self._count = 0
        self.has_any = False

    def add(self, length: int, learned: np.ndarray | None) -> None:
        self.has_any |= learned is not None
        self._parts.append(learned)
        self._lengths.append(length)
        self._count += length
        if self._count >= self._JOINED:
            self._join()

    def _join(self) -> None:
        packed = None
        if any(part is not None for part in self._parts):
            pairs = zip(self._lengths, self._parts, strict=True)
            whole = [np.ones(length, bool) if part is None else part for length, part in pairs]
            packed = np.packbits(np.concatenate(whole))
        self._packed.append((self._count, packed))
        self._parts, self._lengths, self._count = [], [], 0

    def unpacked(self) -> Iterator[np.ndarray]:
        self._join()
        for length, mask in self._packed:
            yield np.ones(length, bool) if mask is None else np.unpackbits(mask, count=length).view(bool)


class GrowingTokens:
    """Documents' ids and masks: in a file if there is a key, otherwise in memory, 4 bytes a token.

    Args:
      key: of the file; None stores nothing.
    """

    def __init__(self, key: str | None):
        self._file: UnfinishedFile | None = None
        self._ids: list[np.ndarray] = []
        self._masks = _Masks()
        self._total = 0
        self._offsets = array.array("q", [0])
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
        self._masks.add(len(ids), learned)
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
        offsets = np.frombuffer(self._offsets, dtype=np.int64)
        has_masks = self._masks.has_any
        if self._file is not None and self._total:
            try:
                return self._file.finish(offsets, self._masks.unpacked() if has_masks else None)
            except OSError as error:
                self._continue_in_memory(error)
        tokens, stop = np.empty(self._total, dtype=np.int32), self._total
        while self._ids:  # backwards, so that each array is freed once it is copied
            ids = self._ids.pop()
            tokens[stop - len(ids) : stop] = ids
            stop -= len(ids)
        learned = np.empty(self._total if has_masks else 0, dtype=bool)
        if has_masks:
            np.concatenate(list(self._masks.unpacked()), out=learned)
        return StoredTokens(tokens, offsets, learned if has_masks else None)

    def _continue_in_memory(self, error: OSError) -> None:
        """Reads the content of the file back into memory."""
        _logger.warning(
            "the tokens are not stored for the next run: %s cannot be written (%s)", store.folder(), error.strerror
        )
        if self._file is not None:
            self._ids = [self._file.read_back()]
            self._file.discard()
            self._file = None
