"""From files and folders to documents: names and texts, in a stable order."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from lcjax.errors import InputError

# Folders that hold other people's or generated files, wherever they lie below a folder that the user named.
SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "dist-packages"})
# Of the standard library, what is not a library: its tests, their data, and the bundle of an installer.
_NOT_LIBRARY = SKIPPED_FOLDERS | {"test", "tests", "idle_test", "lib2to3", "_bundled"}
# Text files hold no NUL byte, binary ones nearly always hold one early (git's rule, too).
_SNIFFED_BYTES = 8192

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Document:
    """One text to learn from; no attention and no prediction crosses its ends.

    `name` is its path as the user spelled it, with `:line` for a line of a .jsonl file (lines count from 1).
    """

    name: str
    text: str


class _NotText(Exception):
    """The file is binary or not UTF-8; the message says which."""


def read_documents(paths: Sequence[str | Path]) -> list[Document]:
    """Reads every text below the given paths, in the order given, folders sorted by name.

    A path is a UTF-8 text file of any suffix (one document; a byte order mark is dropped, line ends stay), a `.jsonl`
    file (one document a line, its field `text`), or a folder, read recursively without hidden entries and
    SKIPPED_FOLDERS. A file reached twice is read once, lest a document be trained on and held out. Files of a folder
    that are not text, and documents of nothing but white space, are skipped; their numbers are logged.

    Returns:
      at least one document.

    Raises:
      InputError: a path that is missing or cannot be read, a folder without text, a named file that is not UTF-8 text,
        a .jsonl line without a string `text`, or nothing but empty documents.
    """
    if not paths:
        raise InputError("no data is named; give at least one text file, .jsonl file or folder")
    documents, seen = [], set()
    try:
        for path in map(Path, paths):
            documents += _read_folder(path, seen) if path.is_dir() else _read_named_file(path, seen)
    except OSError as error:
        raise _unreadable(error) from None
    with_text = [document for document in documents if document.text.strip()]
    if not with_text:
        raise InputError(f"all documents in {', '.join(map(str, paths))} are empty; name files that hold text")
    if len(with_text) < len(documents):
        _logger.info("skipped %d empty documents of %d", len(documents) - len(with_text), len(documents))
    return with_text


def stdlib_sources() -> list[Path]:
    """The Python sources of the running interpreter's standard library, without tests: about 10 MB of text for a demo.

    Raises:
      InputError: this Python keeps no sources of its library on disk.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    try:
        sources = [path for path in _walk(folder, _NOT_LIBRARY) if path.suffix == ".py"]
    except OSError as error:
        raise _unreadable(error) from None
    if not sources:
        raise InputError(f"{folder} holds no *.py files; name your own files or folders as data")
    return sources


def _read_named_file(path: Path, seen: set[Path]) -> list[Document]:
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path of the data")
    try:
        return _read_file(path, seen)
    except _NotText as fault:
        raise InputError(f"{path} {fault}; name UTF-8 text files, .jsonl files or folders") from None


def _read_folder(folder: Path, seen: set[Path]) -> list[Document]:
    documents, skipped, found = [], [], 0
    for path in _walk(folder, SKIPPED_FOLDERS):
        try:
            if not path.is_file():  # a broken link, a socket, or a pipe that would block
                raise _NotText
            documents += _read_file(path, seen)
            found += 1
        except _NotText:
            skipped.append(path)
    if skipped:
        _logger.warning("skipped %d files of %s that are not UTF-8 text, first %s", len(skipped), folder, skipped[0])
    if not found:
        what = f"no text among its {len(skipped)} files" if skipped else "no files"
        raise InputError(f"the folder {folder} holds {what} (hidden ones are not read); name one that holds UTF-8 text")
    return documents


def _walk(folder: Path, skipped_folders: frozenset[str]) -> Iterator[Path]:
    """The files below a folder, each folder's own before its subfolders', both sorted; hidden ones left out."""
    for root, folders, files in os.walk(folder, onerror=_reraise):
        folders[:] = sorted(name for name in folders if name not in skipped_folders and not name.startswith("."))
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def _read_file(path: Path, seen: set[Path]) -> list[Document]:
    real = path.resolve()
    if real in seen:
        _logger.info("%s is named twice and read once", path)
        return []
    seen.add(real)
    text = _read_text(path)
    return list(_read_lines(path, text)) if path.suffix == ".jsonl" else [Document(str(path), text)]


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(_SNIFFED_BYTES)
        if b"\0" in head:
            raise _NotText("is a binary file")
        content = head + file.read()
    try:
        # Not path.read_text(): it would translate line ends.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _NotText(f"is not UTF-8 (byte {error.start})") from None


def _read_lines(path: Path, text: str) -> Iterator[Document]:
    # Not splitlines(): it also splits at U+2028 and others, which JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            name = f"{path}:{number}"
            yield Document(name, _text_of_line(name, line))


def _text_of_line(name: str, line: str) -> str:
    example = 'each line must be an object like {"text": "..."}'
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{name} is not JSON ({error.msg} at column {error.colno}); {example}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not JSON that can be read ({error}); {example}") from None
    if not isinstance(record, dict):
        raise InputError(f"{name} is a JSON {type(record).__name__}, not an object; {example}")
    if "text" not in record:
        raise InputError(f"{name} lacks the field text (it has {', '.join(list(record)[:5]) or 'none'}); {example}")
    text = record["text"]
    if not isinstance(text, str):
        raise InputError(f"{name} has a text of type {type(text).__name__}, not a string; {example}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} has half a surrogate pair at character {error.start} of its text; repair it"
        ) from None
    return text


def _reraise(error: OSError) -> None:
    raise error


def _unreadable(error: OSError) -> InputError:
    return InputError(f"{error.filename} cannot be read ({error.strerror}); check its permissions or leave it out")
