"""Stores what is known of tokenized documents apart from their ids: names, sources, warnings.

The file is next to that of the ids and has the same key. Layout: a header line (JSON, padded to a
multiple of 8 bytes), the offsets of the names [documents + 1] int64, whether each document is a
plain text [documents] bool, the names in UTF-8. A checksum covers all of it.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import json
import logging
import os
import tempfile
import zlib
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from lcjax.data.document import Document
from lcjax.data.tokenizing import store

_FORMAT = "lcjax documents 1"

_logger = logging.getLogger(__name__)


class Names(Sequence[str]):
    """Names in one array of bytes, decoded on demand."""

    def __init__(self, offsets: np.ndarray, content: np.ndarray):
        """Takes offsets [N + 1] int64 and content [total] uint8."""
        self._offsets, self._content = offsets, content

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return bytes(self._content[self._offsets[at] : self._offsets[at + 1]]).decode(errors="surrogateescape")


@dataclasses.dataclass(frozen=True)
class Contents:
    """N documents without their ids.

    Attributes:
      names: of the documents.
      is_text: [N] bool, whether a document is plain text, all of it learned.
      counts: the number of documents of each source, in order.
      warnings: about what was skipped.
    """

    names: Sequence[str]
    is_text: np.ndarray
    counts: tuple[int, ...]
    warnings: tuple[str, ...]


class GrowingContents:
    """Collects the contents, in 9 bytes per document and its name."""

    def __init__(self, sources: int):
        self._offsets = array.array("q", [0])
        self._names, self._is_text = bytearray(), bytearray()
        self._counts = [0] * sources

    def add(self, source: int, document: Document) -> None:
        self._names += document.name.encode(errors="surrogateescape")
        self._offsets.append(len(self._names))
        self._is_text.append(document.learned is None and not document.is_rendered)
        self._counts[source] += 1

    def finish(self, warnings: Sequence[str]) -> Contents:
        names = Names(np.frombuffer(self._offsets, np.int64), np.frombuffer(self._names, np.uint8))
        return Contents(names, np.frombuffer(self._is_text, bool), tuple(self._counts), tuple(warnings))

    def sections(self) -> list[Any]:
        return [self._offsets, self._is_text, self._names]


def write(key: str, growing: GrowingContents, contents: Contents) -> None:
    """Writes the contents if the ids are stored; a file that cannot be written is one warning."""
    if not store.path_of(key).exists():
        return
    header = {"format": _FORMAT, "counts": contents.counts, "warnings": contents.warnings}
    sections = [memoryview(section).cast("B") for section in growing.sections()]
    header["bytes"] = [len(section) for section in sections]
    checksum = zlib.crc32(json.dumps(header).encode())
    for section in sections:
        checksum = zlib.crc32(section, checksum)
    line = json.dumps(header | {"crc32": checksum}).encode()
    line += b" " * (-(len(line) + 1) % 8) + b"\n"
    try:
        with tempfile.NamedTemporaryFile(
            dir=store.folder(), prefix=f"{key}.", suffix=".unfinished", delete=False
        ) as file:
            try:
                file.writelines([line, *sections])
                file.close()
                os.replace(file.name, store.folder() / f"{key}{store.CONTENTS_SUFFIX}")
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(file.name)
                raise
    except OSError as error:
        _logger.warning("the names of the tokenized documents are not stored for the next run (%s)", error.strerror)


def find(key: str) -> Contents | None:
    """The contents under a key; None if there are no valid ones."""
    path = store.folder() / f"{key}{store.CONTENTS_SUFFIX}"
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 24)
            header = json.loads(line)
            checksum, sizes = header.pop("crc32"), header["bytes"]
            content = np.memmap(path, np.uint8, "r", offset=0)[len(line) :]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    if header.get("format") != _FORMAT or len(content) != sum(sizes):
        return None
    if zlib.crc32(content.data, zlib.crc32(json.dumps(header).encode())) != checksum:
        return None
    offsets, is_text, names = np.split(np.asarray(content), np.cumsum(sizes)[:-1])
    return Contents(
        Names(offsets.view(np.int64), names), is_text.view(bool), tuple(header["counts"]), tuple(header["warnings"])
    )
