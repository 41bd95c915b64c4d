"""Which files and folders lie below a path, and what is in them; in an order that does not change."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from lcjax.errors import InputError

# Folders that hold other people's or generated files, wherever they lie below a folder that the user named.
SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages", "node_modules"})
# Of the standard library, what is not a library: its tests, their data, and the bundle of an installer.
_NOT_LIBRARY = SKIPPED_FOLDERS | {"test", "tests", "idle_test", "lib2to3", "_bundled"}
# Text files hold no NUL byte, binary ones nearly always hold one early (git's rule, too).
_SNIFFED_BYTES = 8192


class NotText(Exception):
    """The file is binary or not UTF-8; the message says which."""


def walk(
    folder: Path,
    skipped: frozenset[str] = SKIPPED_FOLDERS,
    is_whole: Callable[[Path, list[str]], bool] = lambda folder, names: False,
) -> Iterator[Path]:
    """The files below a folder, each folder's own before its subfolders', both sorted; hidden ones left out.

    Args:
      skipped: names of folders that are left out.
      is_whole: told a folder and the names of all its entries, says whether to yield the folder instead of what is in it.

    Raises:
      OSError: a folder that cannot be listed.
    """
    for root, folders, files in os.walk(folder, onerror=_reraise):
        if is_whole(Path(root), folders + files):
            folders.clear()
            yield Path(root)
            continue
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def read_bytes(path: Path) -> bytes:
    """The content of a file that looks like text.

    Raises:
      NotText: it holds a NUL byte early.
    """
    with path.open("rb") as file:
        head = file.read(_SNIFFED_BYTES)
        if b"\0" in head:
            raise NotText("is a binary file")
        return head + file.read()


def read_text(path: Path) -> str:
    """The text of a UTF-8 file: a byte order mark is dropped, line ends stay.

    Raises:
      NotText: it is binary or not UTF-8.
    """
    content = read_bytes(path)
    try:
        # Not path.read_text(): it would translate line ends.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotText(f"is not UTF-8 (byte {error.start})") from None


def stdlib_sources() -> list[Path]:
    """The Python sources of the running interpreter's standard library, without tests: about 10 MB of text for a demo.

    Raises:
      InputError: this Python keeps no sources of its library on disk.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    try:
        sources = [path for path in walk(folder, _NOT_LIBRARY) if path.suffix == ".py"]
    except OSError as error:
        raise unreadable(error) from None
    if not sources:
        raise InputError(f"{folder} holds no *.py files; name your own files or folders as data")
    return sources


def unreadable(error: OSError) -> InputError:
    """The one line for a file or folder that cannot be opened."""
    return InputError(f"{error.filename} cannot be read ({error.strerror}); check its permissions or leave it out")


def _reraise(error: OSError) -> None:
    raise error
