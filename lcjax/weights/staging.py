"""Saving all or nothing: files are written aside, reach the disk, and only then take their names."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from lcjax.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def staged(target: Path, needed_bytes: int, *, replaces: tuple[str, ...] = ()) -> Iterator[Path]:
    """A context whose value is an empty directory; what is written there appears in `target` when the block ends.

    A target that does not exist appears at once, by one rename. In one that exists, each file replaces its namesake by
    a rename, weights before the JSON that describes them, and other files stay. If the block or the disk fails, the
    target is as it was and what was written is removed.

    Args:
      target: the directory to save to; its parents are made.
      needed_bytes: about how many bytes will be written, to refuse before the first.
      replaces: glob patterns of a former save's files, removed from an existing target unless saved again.

    Raises:
      InputError: the target is a file, the disk lacks the space, or a path cannot be written.
    """
    target = target.expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; name a directory to save to")
    try:
        # Beside or inside the target, so that a rename stays within one file system.
        place = target if target.is_dir() else target.parent
        place.mkdir(parents=True, exist_ok=True)
        _require_space(place, needed_bytes)
        staging = place / f".{target.name}.partial-{secrets.token_hex(4)}"
        staging.mkdir()
        try:
            yield staging
            _publish(staging, target, replaces)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise _input_error(target, needed_bytes, error) from error


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
        f"{target} cannot be written ({reason}): {needed_bytes:,} bytes are needed and {free:,} are free; "
        "free some space or save elsewhere"
    )
