"""What all command lines share: which exit code and which words a fault ends with."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from lcjax.errors import InputError

Arguments = TypeVar("Arguments")


def entry_point(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """Turns `main(argv) -> int` into a command's entry point, `main(argv=None) -> int`, that raises on our bugs only.

    Returns 2 for what the user can mend: an InputError, printed as one line on stderr, or a wrong flag, which tyro has
    explained. Returns 130, the shell's code for an interrupt, on Ctrl-C.
    """

    @functools.wraps(main)
    def entry(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except InputError as error:
            print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
            return 2
        except SystemExit as stop:  # how tyro ends after --help (0) and after a wrong flag
            return 2 if stop.code else 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return entry


def parse(kind: type[Arguments], argv: list[str] | None, program: str, default: Arguments | None = None) -> Arguments:
    """Reads flags into a dataclass, over the values of `default` where it is given.

    Raises:
      InputError: what the dataclass refuses, in its own words; tyro would frame them like a flag that does not parse.
    """
    printed = io.StringIO()
    overrides: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(kind, args=argv, prog=program, **overrides)
    except SystemExit as stop:
        if isinstance(stop.__context__, InputError):
            raise stop.__context__ from None
        sys.stderr.write(printed.getvalue())
        raise
