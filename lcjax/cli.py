"""What all command lines share: how flags are read, where results go, and which exit code and words a fault ends with."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tyro
from rich.console import Console

from lcjax.errors import InputError

Arguments = TypeVar("Arguments")

INTERRUPTED = 130
"""The shell's exit code for Ctrl-C."""

NVIDIA_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/nvidia0"), Path("/dev/dxg"))  # the last one under WSL


def entry_point(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """Turns `main(argv) -> int` into a command's entry point, `main(argv=None) -> int`, that raises on our bugs only.

    Returns 2 for what the user can mend: an InputError, printed as one line on stderr, or a wrong flag, which tyro has
    explained. Returns INTERRUPTED on Ctrl-C.
    """

    @functools.wraps(main)
    def entry(argv: list[str] | None = None) -> int:
        if not any(device.exists() for device in NVIDIA_DEVICES):
            logging.getLogger("jax._src.xla_bridge").addFilter(_is_no_idle_plugin)
        try:
            return main(argv)
        except InputError as error:
            print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
            return 2
        except SystemExit as stop:  # how tyro ends after --help (0) and after a wrong flag
            return 2 if stop.code else 0
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED

    return entry


def _is_no_idle_plugin(record: logging.LogRecord) -> bool:
    """Without a GPU, JAX's plugin for one is there to plan with: that it does not start is no news, and JAX logs a traceback."""
    return not record.getMessage().startswith("Jax plugin configuration error")


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


def check_outputs(**paths: str | Path | None) -> None:
    """Raises InputError where the directory of an output, named as its flag is, does not exist; "-" is standard output."""
    for name, path in paths.items():
        if path and str(path) != "-" and not Path(path).absolute().parent.is_dir():
            raise InputError(f"--{name} {path}: the directory {Path(path).absolute().parent} does not exist")


def write_json(content: Any, path: str | None) -> None:
    """Writes JSON to a file, to standard output for "-", or nowhere for None."""
    text = json.dumps(content, indent=1) + "\n"
    if path == "-":
        sys.stdout.write(text)
    elif path is not None:
        Path(path).write_text(text, encoding="utf-8")


def tables_console(json_path: str | None) -> Console:
    """Where tables go: where they do not mix with JSON, and whole where nobody's terminal limits their width."""
    to_stderr = json_path == "-"
    terminal = (sys.stderr if to_stderr else sys.stdout).isatty()
    return Console(stderr=to_stderr, width=None if terminal else 160)
