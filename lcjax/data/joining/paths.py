"""Finds the files of a repository that the name of a module or header may stand for."""

from __future__ import annotations

import collections
import posixpath
from collections.abc import Callable, Iterable, Iterator


class RepositoryPaths:
    """The files of a repository, by path.

    Paths are relative to the root of the repository, with slashes.
    """

    def __init__(self, paths: Iterable[str]):
        self._paths = dict.fromkeys(paths)
        self._by_name: dict[str, list[str]] = collections.defaultdict(list)
        self._by_folder: dict[str, list[str]] = collections.defaultdict(list)
        for path in self._paths:
            folder, name = posixpath.split(path)
            self._by_name[name].append(path)
            self._by_folder[folder].append(path)

    def at(self, folder: str, relative: str, endings: Iterable[str] = ("",)) -> str | None:
        """The file at a path relative to a folder, with the first of the endings that exists."""
        for ending in endings:
            path = posixpath.normpath(posixpath.join(folder, relative)) + ending
            if path in self._paths:
                return path
        return None

    def nearest(
        self,
        importer: str,
        relative: str,
        endings: Iterable[str] = ("",),
        is_start: Callable[[str], bool] = lambda folder: True,
    ) -> str | None:
        """The file with this path below a folder that the importer is in, the nearest one first.

        Otherwise the only file of the repository whose path ends so, as with `src/` or `include/`.

        Args:
          is_start: whether a path may start in a folder.
        """
        endings = tuple(endings)
        for folder in filter(is_start, above(importer)):
            if (found := self.at(folder, relative, endings)) is not None:
                return found
        relative = posixpath.normpath(relative)
        for wanted in (relative + ending for ending in endings):
            matches = [
                path for path in self._by_name.get(posixpath.basename(wanted), ()) if path.endswith(f"/{wanted}")
            ]
            if len(matches) == 1 and is_start(matches[0].removesuffix(f"/{wanted}")):
                return matches[0]
        return None

    def folders(self, relative: str) -> list[str]:
        """The folders with files whose paths end so."""
        return [folder for folder in self._by_folder if f"/{folder}".endswith(f"/{relative}")]

    def directly_in(self, folder: str, ending: str) -> list[str]:
        """The files directly in a folder whose names end so."""
        return [path for path in self._by_folder.get(folder, ()) if path.endswith(ending)]


def above(path: str) -> Iterator[str]:
    """The folders that a file is in, the innermost first; the root is ""."""
    while path:
        path = posixpath.dirname(path)
        yield path
