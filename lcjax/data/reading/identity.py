"""What determines the documents that paths have: the contents of their files, hashed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lcjax.data.formats.chat import ChatTemplate
from lcjax.data.reading import hub
from lcjax.data.reading.files import walk
from lcjax.data.reading.repositories import roots
from lcjax.data.reading.tables import is_data
from lcjax.data.tokenizing import store

# Changes whenever the same files give other documents than before.
_FORMAT = "lcjax documents 2"


@dataclasses.dataclass(frozen=True)
class Identity:
    """The files of paths, as they were when they were hashed.

    Attributes:
      digest: 32 hexadecimal digits of all that determines the documents and their ids.
      states: the size and the time of the last change of each file, in nanoseconds.
      num_bytes: of all files.
    """

    digest: str
    states: dict[Path, tuple[int, int]]
    num_bytes: int

    def still_holds(self) -> bool:
        """Whether no file has changed since."""
        try:
            return all(_state(path) == state for path, state in self.states.items())
        except OSError:
            return False


def identify(
    paths: Sequence[str | Path], template: ChatTemplate, columns: Sequence[str], definition: str, documents: str
) -> Identity | None:
    """The identity of the documents below paths; None if it cannot be known before they are read.

    That is so for pipes, whose content can be read only once, and for files that cannot be read.

    Args:
      definition: of the tokenizer.
      documents: how files become documents; see `read_sources`.
    """
    hashed = hashlib.blake2b(digest_size=16)
    states: dict[Path, tuple[int, int]] = {}
    hashed.update(json.dumps([_FORMAT, definition, template.definition(), list(columns), documents]).encode())
    try:
        for source, path in enumerate(paths):
            if documents == "repository" and Path(path).is_dir():
                # Hidden entries mark the roots, and no others have an effect.
                hashed.update(json.dumps([source, *map(str, roots(Path(path)))]).encode())
            for file, shown in _files(path):
                if not file.is_file():
                    if file == Path(path):
                        return None
                    hashed.update(json.dumps([source, shown]).encode())
                    continue
                states[file] = _state(file)
                with file.open("rb") as opened:
                    content = hashlib.file_digest(opened, "blake2b").hexdigest()
                hashed.update(json.dumps([source, shown, content]).encode())
    except OSError:
        return None
    return Identity(hashed.hexdigest(), states, sum(size for size, _ in states.values()))


def _files(path: str | Path) -> Iterator[tuple[Path, str]]:
    """The files that a path may be read from, with their names for the user."""
    local = Path(path)
    if not local.exists() and (data := hub.hub_data(str(path))) is not None:
        yield from ((file, f"{data}/{file.name}") for file in hub.download(data, is_data))
    elif local.is_dir():
        # The stored tokens may be in the same folder, and change with every run.
        stored = store.folder().resolve()
        yield from ((file, str(file)) for file in walk(local) if stored not in file.resolve().parents)
    else:
        yield local, str(local)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
