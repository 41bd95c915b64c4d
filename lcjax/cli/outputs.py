"""Checks where a command's results go before work begins, and replaces files atomically."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lcjax.errors import InputError

PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
"""The kinds of pictures that --plot writes."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

# Errors of the file system, and the remedy for each.
ENVIRONMENT = {
    errno.EACCES: "check its permissions",
    errno.EDQUOT: "free disk space, or choose another place",
    errno.EFBIG: "free disk space, or choose another place",
    errno.EIO: "check the disk",
    errno.EISDIR: "give a file",
    errno.ELOOP: "check the links",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOENT: "check the path",
    errno.ENOSPC: "free disk space, or choose another place",
    errno.ENOTDIR: "check the path",
    errno.EPERM: "check its permissions",
    errno.EROFS: "choose another place",
}


def check_outputs(reads: Sequence[str | Path] = (), **paths: str | Path | None) -> None:
    """Raises InputError if an output, named by its flag, cannot be written; "-" means stdout.

    Args:
      reads: the files and folders that the command reads, which no output may replace.
    """
    for name, path in paths.items():
        if path and str(path) != "-":
            _check_output(f"--{name}", Path(path))
            _refuse_to_replace(f"--{name}", Path(path), reads)
    picture = paths.get("plot")
    if picture and Path(picture).suffix.lower() not in PICTURES:
        raise InputError(f"--plot {picture} is not a supported picture name; end it with one of {', '.join(PICTURES)}")


def check_output_dir(name: str, path: Path) -> None:
    """Raises InputError if the directory does not exist and cannot be created.

    Directories created for the check are removed again.

    Args:
      name: its name for the user, such as --output-dir.
    """
    made: list[Path] = []
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{name} {path} is a file; give a folder")
        for folder in [*reversed(path.absolute().parents), path.absolute()]:
            if not folder.is_dir():
                folder.mkdir()
                made.append(folder)
        if not os.access(path, os.W_OK | os.X_OK):
            raise InputError(f"{name} {path} cannot be written to (no permission); choose another")
    except OSError as error:
        raise InputError(
            f"{name} {shortened(str(path))} cannot be created ({error.strerror}); choose another"
        ) from None
    finally:
        for folder in reversed(made):
            folder.rmdir()


def write_json(content: Any, path: str | None) -> None:
    """Writes JSON to a file, to standard output for "-", or nowhere for None."""
    text = json.dumps(content, indent=1) + "\n"
    if path == "-":
        sys.stdout.write(text)
    elif path is not None:
        with output_file(Path(path)) as temporary:
            temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """`written_atomically`, for a file that the user named.

    Raises:
      InputError: the file cannot be written; the message says what to do.
    """
    try:
        with written_atomically(path) as temporary:
            yield temporary
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            raise
        remedy = ENVIRONMENT[error.errno]
        raise InputError(f"{path} cannot be written ({os.strerror(error.errno)}); {remedy}") from error


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """A context that yields a temporary path. At its end, the file there replaces `path`.

    After an error, `path` is unchanged and the temporary file is deleted. A path that is not a
    regular file, such as /dev/stdout or a pipe, is yielded itself.

    Raises:
      OSError: the file cannot be replaced.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_output(name: str, path: Path) -> None:
    try:
        parent = path.absolute().parent
        if path.is_dir():
            raise InputError(f"{name} {path} is a folder; give a file")
        if not parent.is_dir():
            raise InputError(f"{name} {path}: the directory {parent} does not exist")
        place = path if path.exists() else parent
        length = len(os.fsencode(path.name))
    except OSError as error:
        raise InputError(
            f"{name} {shortened(str(path))} cannot be written ({error.strerror}); choose another"
        ) from None
    if length > 230:  # the temporary file has a longer name
        raise InputError(f"{name} {shortened(str(path))} has a name of {length} bytes; give a shorter one")
    if not os.access(place, os.W_OK):
        raise InputError(f"{name} {path} cannot be written (no permission for {place}); choose another")


def _refuse_to_replace(name: str, path: Path, reads: Sequence[str | Path]) -> None:
    if not path.is_file():
        return
    written = Path(os.path.realpath(path))
    for source in filter(None, map(str, reads)):
        place = Path(os.path.realpath(source))
        if place == written or place in written.parents or (place.is_file() and place.samefile(written)):
            raise InputError(f"{name} {path} would replace an input file, of {source}; choose another file")


def printable(line: str) -> str:
    """The line with escapes, such as \\x1b, for control characters, which a terminal would obey.

    They come from names of files and from data.
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", line)


def shortened(text: str) -> str:
    """The text, or only its beginning and end if it is too long for a line."""
    return text if len(text) <= 160 else f"{text[:100]}...{text[-40:]}"
