"""Saves all or nothing: writes to a temporary directory, flushes to disk, then renames."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from lcjax.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def staged(target: Path, needed_bytes: int, *, replaces: tuple[str, ...] = ()) -> Iterator[Path]:
    """A context that yields an empty directory, whose files appear in `target` when the block ends.

    A new target appears at once, by one rename. In an existing target, each file replaces the file
    of the same name by a rename, weights before the JSON that describes them; other files stay. If
    the block or the disk fails, the target is unchanged and the written files are removed. If the
    process is killed, the next process that saves there removes them.

    Args:
      target: the directory to save to; its parents are created.
      needed_bytes: about how many bytes will be written, to fail before writing if space is short.
      replaces: glob patterns of a former save's files, removed from an existing target unless saved
        again.

    Raises:
      InputError: the target is a file, there is not enough disk space, or a path cannot be written.
    """
    target = target.expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; name a directory to save to")
    try:
        # Next to or inside the target, so that the rename stays within one file system.
        place = target if target.is_dir() else target.parent
        place.mkdir(parents=True, exist_ok=True)
        _require_space(place, needed_bytes)
        prefix = f".{target.name}.partial-"
        if place == target:  # absent when a process that was killed started
            with _cleared(target.parent, prefix):
                pass
        staging, descriptor = _claim(place, prefix)
        try:
            yield staging
            _publish(staging, target, replaces)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            os.close(descriptor)
    except OSError as error:
        raise _input_error(target, needed_bytes, error) from error


def _claim(place: Path, prefix: str) -> tuple[Path, int]:
    """A new directory in `place` that this process has locked, and the lock's file descriptor."""
    with _cleared(place, prefix):
        staging = place / f"{prefix}{secrets.token_hex(4)}"
        staging.mkdir()
        descriptor = os.open(staging, os.O_RDONLY)
        _lock(descriptor)
        return staging, descriptor


@contextlib.contextmanager
def _cleared(place: Path, prefix: str) -> Iterator[None]:
    """A context that first removes from `place` what killed processes left there.

    The operating system has released their locks. Meanwhile others wait for the lock on `place`, so
    no process sees a directory between its creation and its locking.
    """
    descriptor = os.open(place, os.O_RDONLY)
    try:
        if _lock(descriptor, wait=True):
            for former in place.glob(f"{glob.escape(prefix)}*"):
                _remove_abandoned(former)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(former: Path) -> None:
    try:
        descriptor = os.open(former, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # just removed, or not ours
        return
    try:
        if _lock(descriptor):
            shutil.rmtree(former, ignore_errors=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool = False) -> bool:
    """Whether the lock was acquired; some network file systems do not support locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _require_space(place: Path, needed_bytes: int) -> None:
    if shutil.disk_usage(place).free < needed_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _publish(staging: Path, target: Path, replaces: tuple[str, ...]) -> None:
    saved = [path.relative_to(staging) for path in staging.rglob("*") if path.is_file()]
    for path in saved:
        _reach_disk(staging / path)
    if not target.exists():
        _reach_disk(staging)
        staging.rename(target)
    else:
        for path in sorted(saved, key=lambda path: (path.suffix != ".safetensors", path)):
            (target / path).parent.mkdir(exist_ok=True)
            (staging / path).replace(target / path)
        former = {path.relative_to(target) for pattern in replaces for path in target.glob(pattern)}
        for path in former.difference(saved):
            (target / path).unlink()
    _reach_disk(target)
    _reach_disk(target.parent)


def _reach_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _input_error(target: Path, needed_bytes: int, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    if error.errno not in _FULL:
        return InputError(f"{target} cannot be written ({reason}); check the path and its permissions")
    existing = next(path for path in (target, *target.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return InputError(
        f"{target} cannot be written ({reason}): {needed_bytes:,} bytes are needed and {free:,} "
        "are free; free some space or save elsewhere"
    )
