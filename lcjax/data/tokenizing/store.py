"""Stores token ids on disk, so that the same documents are not encoded twice.

One file has the ids of all documents that were encoded together. Its name is a digest of the
tokenizer, of the documents and of this format. It is written under another name and renamed when it
is complete. Layout, little-endian: a header line of 256 bytes (JSON), the ids [total] int32, the
masks [total] bool if there are any, zeros up to a multiple of 8, the offsets [documents + 1] int64.
A checksum covers the whole file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from lcjax.data.document import Document
from lcjax.errors import InputError

LIMIT_VARIABLE = "LCJAX_TOKEN_CACHE_GB"
_DEFAULT_GB = 20
_FORMAT = "lcjax tokens 1"
_SUFFIX, _UNFINISHED = ".tokens", ".unfinished"
CONTENTS_SUFFIX = ".documents"
"""Of the file next to the tokens that `lcjax.data.tokenizing.contents` writes."""
LOCK_SUFFIX = ".lock"
"""Of the file that the process that encodes the tokens has locked; see `locking`."""
FOLDER_VARIABLE = "LCJAX_TOKEN_CACHE"
HEADER_BYTES = 256
_BLOCK_BYTES = 1 << 24
# Number of characters hashed at a time, so that the text is not duplicated as bytes.
_HASHED_CHARACTERS = 1 << 20
# A file may exist for this long before its process locks it.
UNLOCKED_SECONDS = 60

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StoredTokens:
    """Ids [total] int32, offsets [N + 1] int64, masks [total] bool or None; mapped from a file."""

    tokens: np.ndarray
    offsets: np.ndarray
    learned: np.ndarray | None


def folder() -> Path:
    """Where tokens are stored: $LCJAX_TOKEN_CACHE, or lcjax/tokens in the user's cache folder."""
    if given := os.environ.get(FOLDER_VARIABLE, "").strip():
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lcjax" / "tokens"


def path_of(key: str) -> Path:
    """The file of the tokens under a key."""
    return folder() / f"{key}{_SUFFIX}"


def limit_bytes() -> int:
    """The limit on the total size of the files; 0 stores nothing.

    Raises:
      InputError: the environment variable is not a number of gigabytes.
    """
    given = os.environ.get(LIMIT_VARIABLE, "").strip() or str(_DEFAULT_GB)
    try:
        limit = float(given)
        if not 0 <= limit < 1e9:
            raise ValueError
    except ValueError:
        raise InputError(f"{LIMIT_VARIABLE}={given} is not a number of gigabytes; set it to 0 or more") from None
    return int(limit * 1e9)


def digest(definition: str, documents: Sequence[Document]) -> str:
    """32 hexadecimal digits that change with the tokenizer's definition and with any document."""
    hashed = hashlib.blake2b(f"{_FORMAT}\n".encode() + definition.encode(errors="surrogatepass"), digest_size=16)
    for document in documents:
        text = document.text
        hashed.update(f"\n{len(text)} {document.is_rendered} {document.learned}\n".encode())
        for start in range(0, len(text), _HASHED_CHARACTERS):
            hashed.update(text[start : start + _HASHED_CHARACTERS].encode(errors="surrogatepass"))
    return hashed.hexdigest()


def find(key: str) -> StoredTokens | None:
    """The tokens under a key, checked; None if there are no valid ones."""
    path = path_of(key)
    try:
        with path.open("rb") as file:
            header = _checked_header(file, key)
            if header is None:
                _logger.warning("the stored tokens %s are damaged; the text is encoded again", path)
                return None
            with contextlib.suppress(OSError):
                os.utime(path)  # the least recently used files are removed first
            return _mapped(file, header)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        _logger.warning("the stored tokens %s cannot be read (%s); the text is encoded again", path, error.strerror)
        return None


def _checked_header(file: IO[bytes], key: str) -> dict[str, Any] | None:
    """The header of a complete and undamaged file, otherwise None."""
    line = file.read(HEADER_BYTES)
    try:
        header = json.loads(line)
        checksum = header.pop("crc32")
        is_whole = (
            (header["format"], header["key"]) == (_FORMAT, key)
            and line == _header_line(header, checksum)
            and os.fstat(file.fileno()).st_size == _layout(header)[-1]
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not is_whole:
        return None
    found = zlib.crc32(_facts(header))
    while block := file.read(_BLOCK_BYTES):
        found = zlib.crc32(block, found)
    return header if found == checksum else None


def _mapped(file: IO[bytes], header: dict[str, Any]) -> StoredTokens:
    masks, offsets, _ = _layout(header)
    total = header["tokens"]

    def mapped(dtype: Any, start: int, count: int) -> np.ndarray:
        return np.asarray(np.memmap(file, dtype, "r", start, (count,)))

    return StoredTokens(
        mapped("<i4", HEADER_BYTES, total),
        mapped("<i8", offsets, header["documents"] + 1),
        mapped(bool, masks, total) if header["has_masks"] else None,
    )


def _layout(header: dict[str, Any]) -> tuple[int, int, int]:
    """Where in the file the masks and the offsets begin, and where the file ends."""
    masks = HEADER_BYTES + 4 * header["tokens"]
    stop = masks + (header["tokens"] if header["has_masks"] else 0)
    offsets = stop + -stop % 8
    return masks, offsets, offsets + 8 * (header["documents"] + 1)


def _facts(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True).encode()


def _header_line(header: dict[str, Any], checksum: int) -> bytes:
    return _facts(header | {"crc32": checksum}).ljust(HEADER_BYTES - 1) + b"\n"


class UnfinishedFile:
    """A token file that is being written; it is removed unless it is finished.

    Raises, in every method:
      OSError: the folder cannot be written, or the disk is full.
    """

    def __init__(self, key: str):
        folder().mkdir(parents=True, exist_ok=True)
        self._key = key
        self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115 (`discard` closes it)
            dir=folder(), prefix=f"{key}.", suffix=_UNFINISHED, delete=False, buffering=0
        )
        # A dead process holds no lock. This distinguishes its files from those being written.
        with contextlib.suppress(OSError):
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.total = 0
        try:
            self._write(bytes(HEADER_BYTES))
        except OSError:
            self.discard()
            raise

    def add(self, ids: np.ndarray) -> None:
        """Appends ids, [n] int32."""
        self._write(np.ascontiguousarray(ids, dtype="<i4").data.cast("B"))
        self.total += len(ids)

    def read_back(self) -> np.ndarray:
        """All ids that were appended."""
        return np.fromfile(self._file.name, "<i4", self.total, offset=HEADER_BYTES).astype(np.int32, copy=False)

    def finish(self, offsets: np.ndarray, masks: Iterator[np.ndarray] | None) -> StoredTokens:
        """Completes, renames and maps the file, and removes the oldest files above the limit."""
        header = {"format": _FORMAT, "key": self._key, "documents": len(offsets) - 1, "tokens": self.total}
        header["has_masks"] = masks is not None
        for mask in masks or ():
            self._write(mask.data.cast("B"))
        self._write(bytes(-self._file.tell() % 8))
        self._write(offsets.astype("<i8").data.cast("B"))
        self._file.seek(0)
        with open(self._file.name, "rb") as written:
            written.seek(HEADER_BYTES)
            checksum = zlib.crc32(_facts(header))
            while block := written.read(_BLOCK_BYTES):
                checksum = zlib.crc32(block, checksum)
            self._file.write(_header_line(header, checksum))
            stored = _mapped(written, header)
        path = path_of(self._key)
        os.replace(self._file.name, path)
        _remove_oldest(path, limit_bytes())
        return stored

    def discard(self) -> None:
        """Closes the file, and removes it if it is not finished."""
        with contextlib.suppress(OSError):
            os.unlink(self._file.name)
        self._file.close()

    def _write(self, data: Any) -> None:
        view = memoryview(data)
        while len(view):
            view = view[self._file.write(view) :]


def _remove_oldest(newest: Path, limit: int) -> None:
    """Removes files of dead processes, and the least recently used files above the limit."""
    for path in (*folder().glob(f"*{_UNFINISHED}"), *folder().glob(f"*{LOCK_SUFFIX}")):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - path.stat().st_mtime > UNLOCKED_SECONDS:
                path.unlink()
    found = []
    for path in folder().glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another process may remove files, too
            status = path.stat()
            found.append((path != newest, -status.st_mtime_ns, status.st_size, path))
    total = 0
    for _, _, size, path in sorted(found):
        total += size
        if total > limit:
            with contextlib.suppress(OSError):
                path.unlink()
    for path in folder().glob(f"*{CONTENTS_SUFFIX}"):
        if not path.with_suffix(_SUFFIX).exists():
            with contextlib.suppress(OSError):
                path.unlink()
