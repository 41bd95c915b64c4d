"""Tokens as they come, to be one array in the end."""

from __future__ import annotations

import numpy as np


class GrowingTokens:
    """Documents' ids and masks, in memory: 4 bytes a token, and one bit until the end where masks are."""

    def __init__(self):
        self._ids: list[np.ndarray] = []
        self._masks: list[np.ndarray | None] = []
        self._total = 0
        self._offsets = [0]

    def add(self, ids: np.ndarray, learned: np.ndarray | None, *, ends_document: bool) -> None:
        """Appends the next ids, [n] int32, of which `learned` [n] bool says which are learned; None means all."""
        self._ids.append(ids)
        self._masks.append(None if learned is None else np.packbits(learned))
        self._total += len(ids)
        if ends_document:
            self._offsets.append(self._total)

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """(tokens [total] int32, offsets [N + 1] int64, learned [total] bool or None); nothing can be added any more."""
        tokens = np.empty(self._total, dtype=np.int32)
        learned = None if all(mask is None for mask in self._masks) else np.ones(self._total, dtype=bool)
        stop = self._total
        while self._ids:  # from the end, so that each array is freed once it is copied
            ids, mask = self._ids.pop(), self._masks.pop()
            start = stop - len(ids)
            tokens[start:stop] = ids
            if learned is not None and mask is not None:
                learned[start:stop] = np.unpackbits(mask, count=len(ids)).view(bool)
            stop = start
        return tokens, np.array(self._offsets, dtype=np.int64), learned
