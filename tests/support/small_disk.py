"""Runs `python -m lcjax.train` as if the folder $DISK were a file system with $DISK_BYTES bytes.

With `--free`, it prints the number of free bytes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lcjax.train.__main__ import main

BLOCK_BYTES = 4096


def sizes_in(folder: Path) -> Iterator[int]:
    """Yields the bytes of every file; other threads may rename and remove files meanwhile."""
    for directory, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield os.stat(os.path.join(directory, name)).st_size


def limited(usage: Callable[[Any], Any], disk: Path, capacity: int) -> Callable[[Any], Any]:
    """Returns a `shutil.disk_usage` for which `disk` is a file system with `capacity` bytes."""

    def limited_usage(path: Any) -> Any:
        found = usage(path)
        if not Path(path).resolve().is_relative_to(disk):
            return found
        used = sum(-(-size // BLOCK_BYTES) * BLOCK_BYTES for size in sizes_in(disk))
        return found._replace(total=capacity, used=used, free=max(0, capacity - used))

    return limited_usage


if __name__ == "__main__":
    folder, arguments = Path(os.environ["DISK"]).resolve(), sys.argv[1:]
    shutil.disk_usage = limited(shutil.disk_usage, folder, int(os.environ["DISK_BYTES"]))
    if arguments == ["--free"]:
        print(shutil.disk_usage(folder).free)
        sys.exit(0)
    sys.exit(main(arguments))
