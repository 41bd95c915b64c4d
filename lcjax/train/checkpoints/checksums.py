"""Checksums of every file in a folder: written when it is complete, verified before use."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
from pathlib import Path
from typing import Any

CHECKSUMS = "checksums.json"


def write_checksums(directory: Path) -> None:
    """Writes size and SHA-256 of every file below `directory`, and syncs everything to disk.

    Raises:
      OSError: a file cannot be read or written.
    """
    names = [name for name in _files(directory) if name != CHECKSUMS]
    with hashing_threads() as threads:
        entries = threads.map(lambda name: _entry(directory / name, sync=True), names)
        content = _encode(dict(zip(names, entries, strict=True)))
    path = directory / CHECKSUMS
    path.write_bytes(content)
    for written in (path, *(folder for folder in directory.rglob("*") if folder.is_dir()), directory):
        sync(written)


def find_damage(directory: Path) -> str | None:
    """The first file that differs from what `write_checksums` recorded, and how; None if all match.

    Missing and unexpected files, and files of another size or content, count as damage, and so does
    a changed list of checksums.
    """
    try:
        content = (directory / CHECKSUMS).read_bytes()
    except OSError as error:
        return f"{CHECKSUMS}: {_reason(error)}"
    expected = _decode(content)
    if expected is None:
        return f"{CHECKSUMS}: it does not have its own checksum"
    found = set(_files(directory)) - {CHECKSUMS}
    if missing := sorted(expected.keys() - found):
        return f"{missing[0]}: missing"
    if unexpected := sorted(found - expected.keys()):
        return f"{unexpected[0]}: unexpected file"
    with hashing_threads() as threads:
        compared = threads.map(lambda name: _compare(directory / name, expected[name]), sorted(expected))
        for name, difference in zip(sorted(expected), compared, strict=True):
            if difference is not None:
                return f"{name}: {difference}"
    return None


def hashing_threads() -> concurrent.futures.ThreadPoolExecutor:
    """One thread for each available processor, at most 16; hashlib and disk I/O release the GIL."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return concurrent.futures.ThreadPoolExecutor(min(16, processors))


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _compare(path: Path, expected: dict[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{size:,} bytes instead of {expected['bytes']:,}"
        return None if _entry(path) == expected else "contents differ from its checksum"
    except OSError as error:
        return _reason(error)


def _entry(path: Path, *, sync: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


def _encode(files: dict[str, Any]) -> bytes:
    body = json.dumps(files, indent=1, sort_keys=True)
    return f'{{"sha256": "{hashlib.sha256(body.encode()).hexdigest()}",\n"files": {body}}}\n'.encode()


def _decode(content: bytes) -> dict[str, Any] | None:
    """The argument of `_encode`, or None unless `_encode` produces exactly these bytes."""
    try:
        files = json.loads(content)["files"]
        return files if content == _encode(files) else None
    except (ValueError, KeyError, TypeError):
        return None


def _files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir())


def _reason(error: OSError) -> str:
    return "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
