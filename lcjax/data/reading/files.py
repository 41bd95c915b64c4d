"""Finds the files and folders below a path, in a fixed order, and reads files."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import itertools
import logging
import lzma
import os
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow

from lcjax.errors import InputError

# Folders with other people's or generated files, skipped everywhere below a folder that the user
# gave.
SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "node_modules"})
# Parts of the standard library that are not a library: tests, their data, and an installer's
# bundle.
_NOT_LIBRARY = SKIPPED_FOLDERS | {"test", "tests", "idle_test", "lib2to3", "_bundled"}
# Text files contain no NUL byte; binary files nearly always have one early (also git's rule).
_SNIFFED_BYTES = 8192
_BLOCK_BYTES = 2**20
# Functions that open compressed files, by suffix.
_COMPRESSIONS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path, mode: pyarrow.input_stream(str(path), compression="zstd"),
}

_logger = logging.getLogger(__name__)


class NotText(Exception):
    """The file is binary or not UTF-8; the message says which."""


def walk(
    folder: Path,
    skipped: frozenset[str] = SKIPPED_FOLDERS,
    is_whole: Callable[[Path, list[str]], bool] = lambda folder, names: False,
) -> Iterator[Path]:
    """The files below a folder, without hidden ones.

    The files of a folder come before those of its subfolders; both are sorted. Links to folders are
    followed. Each folder is visited once, and a link to a folder that contains the link is skipped.

    Args:
      skipped: names of folders that are skipped.
      is_whole: given a folder and the names of all its entries, whether to yield the folder instead
        of its content.

    Raises:
      OSError: a folder cannot be listed.
    """
    seen = {folder.resolve()}
    for root, folders, files in os.walk(folder, onerror=_reraise, followlinks=True):
        if is_whole(Path(root), folders + files):
            folders.clear()
            yield Path(root)
            continue
        visible = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        folders[:] = [name for name in visible if _is_to_walk(Path(root, name), seen)]
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def _is_to_walk(folder: Path, seen: set[Path]) -> bool:
    """Whether a folder was not visited yet and does not link to a folder above itself."""
    real = folder.resolve()
    if folder.is_symlink() and real in (folder.parent.resolve(), *folder.parent.resolve().parents):
        _logger.warning("%s links to a folder that contains it, and is not followed", folder)
        return False
    if real in seen:
        _logger.info("%s is reached twice and read once", folder)
        return False
    seen.add(real)
    return True


def suffix_of(path: Path) -> str:
    """The last suffix in lower case, without that of compression: `.jsonl` for `a.JSONL.gz`."""
    compressed = path.suffix.lower() in _COMPRESSIONS
    return (Path(path.stem) if compressed else path).suffix.lower()


def open_file(path: Path) -> BinaryIO:
    """Opens a file for reading; decompresses it if its suffix is .gz, .bz2, .xz or .zst.

    Raises:
      NotText: it is not compressed as its suffix says. This may be detected only later, see
        `decompressing`.
    """
    with decompressing():
        opened: Any = _COMPRESSIONS.get(path.suffix.lower(), open)(path, "rb")
        return opened


@contextlib.contextmanager
def decompressing() -> Iterator[None]:
    """Converts the errors of reading a damaged compressed file to NotText."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise NotText(f"cannot be decompressed ({error})") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise NotText(f"cannot be decompressed ({error})") from None


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a text file, without a byte order mark and without line ends.

    Only newlines end lines. U+2028 and others, at which `splitlines` splits, may occur in JSON
    strings.

    Raises:
      NotText: it has a NUL byte early.
    """
    with decompressing(), open_file(path) as file:
        head = file.read(_SNIFFED_BYTES)
        _refuse_binary(head)
        blocks = itertools.chain([head.removeprefix(b"\xef\xbb\xbf")], iter(lambda: file.read(_BLOCK_BYTES), b""))
        # A line may span many blocks; its parts are joined once.
        parts: list[bytes] = []
        for block in blocks:
            first, *others = block.split(b"\n")
            parts.append(first)
            for line in others:
                yield b"".join(parts)
                parts = [line]
        if last := b"".join(parts):
            yield last


def read_bytes(path: Path) -> bytes:
    """The content of a text file.

    Raises:
      NotText: it has a NUL byte early.
    """
    with decompressing(), open_file(path) as file:
        head = file.read(_SNIFFED_BYTES)
        _refuse_binary(head)
        return head + file.read()


def _refuse_binary(head: bytes) -> None:
    if b"\0" in head:
        raise NotText("is a binary file")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark and with its line ends unchanged.

    Raises:
      NotText: it is binary or not UTF-8.
    """
    content = read_bytes(path)
    try:
        # Not path.read_text(), which would convert line ends.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotText(f"is not UTF-8 (byte {error.start})") from None


def stdlib_sources() -> list[Path]:
    """The Python sources of the running interpreter's standard library, without tests.

    They are about 10 MB of text for a demo.

    Raises:
      InputError: this Python has no library sources on disk.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    try:
        sources = [path for path in walk(folder, _NOT_LIBRARY) if path.suffix == ".py"]
    except OSError as error:
        raise unreadable(error) from None
    if not sources:
        raise InputError(f"{folder} has no *.py files; give your own files or folders as data")
    return sources


def unreadable(error: OSError) -> InputError:
    """The one-line error for a file or folder that cannot be opened."""
    return InputError(f"{error.filename} cannot be read ({error.strerror}); check its permissions or omit it")


def _reraise(error: OSError) -> None:
    raise error
