"""Repositories of code as one document each, because files depend on each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lcjax.data.document import Document
from lcjax.data.reading.files import walk

# Entries of version control in a repository's root; a file for a git worktree or submodule.
_ROOT_MARKS = frozenset({".git", ".hg", ".svn"})


def is_repository(folder: Path, names: list[str]) -> bool:
    """Whether a folder with these entries is the root of a repository."""
    return not _ROOT_MARKS.isdisjoint(names)


def holds_repositories(folder: Path) -> bool:
    """Whether the folder or one below is a repository's root; otherwise it counts as one itself."""
    return any(path.is_dir() for path in walk(folder, is_whole=is_repository))


def repository_document(folder: Path, read: Callable[[Path], str | None]) -> Document:
    """All text of a repository: files in the order of `walk`, each after a line with its path.

    Args:
      read: returns the text of a file; None omits the file.
    """
    parts = []
    for path in walk(folder):
        text = read(path)
        if text is not None and text.strip():
            parts.append(f"=== {path.relative_to(folder).as_posix()} ===\n{text.removesuffix(chr(10))}\n")
    return Document(str(folder), "\n".join(parts))
