"""Repositories of code as one document each, because files depend on each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lcjax.data.document import Document
from lcjax.data.joining.order import dependency_order
from lcjax.data.reading.files import walk

# Entries of version control in a repository's root; a file for a git worktree or submodule.
_ROOT_MARKS = frozenset({".git", ".hg", ".svn"})


def is_repository(folder: Path, names: list[str]) -> bool:
    """Whether a folder with these entries is the root of a repository."""
    return not _ROOT_MARKS.isdisjoint(names)


def holds_repositories(folder: Path) -> bool:
    """Whether the folder or one below is a repository's root; otherwise it counts as one itself."""
    return any(path.is_dir() for path in walk(folder, is_whole=is_repository))


def roots(folder: Path) -> list[Path]:
    """The roots of the repositories below a folder; the folder itself if there is none."""
    return [path for path in walk(folder, is_whole=is_repository) if path.is_dir()] or [folder]


def repository_document(folder: Path, read: Callable[[Path], str | None]) -> Document:
    """All text of a repository, each file after a line with its path and after what it imports.

    Args:
      read: returns the text of a file; None omits the file.
    """
    texts = {}
    for path in walk(folder):
        text = read(path)
        if text is not None and text.strip():
            texts[path.relative_to(folder).as_posix()] = text
    # A name may have line breaks.
    parts = (
        f"=== {' '.join(path.splitlines())} ===\n{texts[path].removesuffix(chr(10))}\n"
        for path in dependency_order(texts)
    )
    return Document(str(folder), "\n".join(parts))
