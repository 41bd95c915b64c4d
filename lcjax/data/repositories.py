"""Repositories of code as one document each: what a file depends on lies in the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lcjax.data.document import Document
from lcjax.data.files import walk

# What version control leaves in a repository's root; a file for a git worktree or submodule.
_ROOT_MARKS = frozenset({".git", ".hg", ".svn"})


def is_repository(folder: Path, names: list[str]) -> bool:
    """Whether a folder with these entries is the root of a repository."""
    return not _ROOT_MARKS.isdisjoint(names)


def holds_repositories(folder: Path) -> bool:
    """Whether the folder or one below is the root of a repository; if not, the folder counts as one itself."""
    return any(path.is_dir() for path in walk(folder, is_whole=is_repository))


def repository_document(folder: Path, read: Callable[[Path], str | None]) -> Document:
    """All text of a repository, the files in the order of `walk`, each after a line with its path from the root.

    Args:
      read: the text of a file; None leaves it out.
    """
    parts = []
    for path in walk(folder):
        text = read(path)
        if text is not None and text.strip():
            parts.append(f"=== {path.relative_to(folder).as_posix()} ===\n{text.removesuffix(chr(10))}\n")
    return Document(str(folder), "\n".join(parts))
