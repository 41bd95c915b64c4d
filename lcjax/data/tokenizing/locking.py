"""Lets one process at a time encode the same data, so that the others can use what it stores."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rich.console import Console

from lcjax.cli.terminal import say
from lcjax.data.tokenizing import store

_SECONDS_BETWEEN_TRIALS = 0.2


@contextlib.contextmanager
def alone_with(key: str | None, console: Console | None) -> Iterator[bool]:
    """A context in which no other process of this machine is with the same key.

    Yields whether it had to wait for another process, which may have stored the tokens.

    The wait begins with a message. The lock of a process that was killed is free. If
    the folder cannot be written or its file system has no locks, it is as without this context: all
    processes encode the data, and the last one's file stays.

    Args:
      key: of the stored tokens; None does nothing.
      console: for the message.
    """
    if key is None:
        yield False
        return
    path = store.folder() / f"{key}{store.LOCK_SUFFIX}"
    file, has_waited = None, False
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        file, has_waited = _locked(path, console)
    try:
        yield has_waited
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            file.close()


def _locked(path: Path, console: Console | None) -> tuple[IO[bytes], bool]:
    """The file, opened and locked, and whether another process had locked it before.

    Raises:
      OSError: it cannot be locked.
    """
    has_waited = False
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its former owner may have removed it between the two calls.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file, has_waited
        except BlockingIOError:
            if not has_waited and console is not None:
                say(console, "another process is tokenizing the same data; waiting for it")
            has_waited = True
            file.close()
            time.sleep(_SECONDS_BETWEEN_TRIALS)
        except FileNotFoundError:
            file.close()
        except OSError:
            file.close()
            raise
        else:
            file.close()
