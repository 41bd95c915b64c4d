"""Allows one run per output directory at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lcjax.config.run_record import now
from lcjax.errors import InputError
from lcjax.train.disk import writing

LOCK = ".lock"
# Errors of flock on a file system without locks, such as some network file systems.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(output_dir: Path) -> Iterator[None]:
    """A context in which only this process works in `output_dir`.

    The lock is the operating system's, on a file in the directory. It is released whenever the
    process ends. The file names the holder. If the file system has no locks, a warning is logged.

    Raises:
      InputError: another run holds the lock, or the folder cannot be written.
    """
    path = output_dir / LOCK
    with writing(path):
        file = _open_and_lock(path)
    with file:
        try:
            with writing(path):
                file.truncate(0)
                holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": now().isoformat(" ")}
                file.write(json.dumps(holder) + "\n")
                file.flush()
            yield
        finally:
            # before unlocking, because another process may wait for it
            path.unlink(missing_ok=True)


def _open_and_lock(path: Path) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                with file:
                    raise InputError(_in_use(path.parent, file)) from None
            if error.errno not in _NO_LOCKS:
                file.close()
                raise
            logger.warning(
                "%s is on a file system without locks (%s); make sure that no other run writes there",
                path.parent,
                error.strerror,
            )
            return file
        # The former holder may have removed the file between the two calls; a lock on it would be
        # useless.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()


def _in_use(output_dir: Path, file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
        who = f"process {holder['pid']} on {holder['host']} since {holder['started']}"
    except (ValueError, KeyError, TypeError):
        who = "it has not identified itself"
    return f"{output_dir} is in use by another run ({who}); wait until it ends, or choose another --output-dir"
