"""Reports file system errors as messages that the user can act on."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from lcjax.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The format of an OSError in messages of tensorstore, which writes orbax's arrays.
_OS_ERROR_CODE = re.compile(r"os_error_code='(\d+)'")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A context that converts a failure to write `path` to an InputError.

    Other exceptions pass through.

    Raises:
      InputError: an OSError occurred, or a ValueError of tensorstore that stands for one.
    """
    try:
        yield
    except OSError as error:
        raise _refusal(path, error.errno, error.strerror or str(error)) from error
    except ValueError as error:
        code = _OS_ERROR_CODE.search(str(error))
        if code is None:
            raise
        raise _refusal(path, int(code[1]), os.strerror(int(code[1]))) from error


def require_space(directory: Path, num_bytes: int) -> None:
    """Raises OSError (ENOSPC) if the file system of `directory` has less than `num_bytes` free."""
    if shutil.disk_usage(directory).free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _refusal(path: Path, code: int | None, reason: str) -> InputError:
    remedy = "free disk space" if code in _FULL else "check the path and its permissions"
    return InputError(
        f"{path} cannot be written ({reason}); {remedy}, then resume with "
        "--resume-from-checkpoint latest, or without it if no checkpoint was saved yet"
    )
