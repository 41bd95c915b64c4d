"""How every command begins and ends: the exit code and the last line after an error.

Exit codes: 0 success; 1 a negative result of the command (it does not fit, it leaks, it diverged);
2 an error that the user can correct, in one line on standard error; 130 and 143 after Ctrl-C and
SIGTERM; 141 if the reader of standard output has exited (`... | head`). A closed standard stream
acts as the null device.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lcjax.cli import flags
from lcjax.cli.outputs import ENVIRONMENT, printable, shortened
from lcjax.cli.signals import Interrupted, Signals
from lcjax.cli.startup import BROKEN_PIPE, EXIT_CODES, LAST_LINES, discard, importing, open_missing_streams
from lcjax.errors import InputError

# the last one under WSL
NVIDIA_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/nvidia0"), Path("/dev/dxg"))


def entry_point(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """Converts `main(argv) -> int` to an entry point that raises only for bugs in lcjax.

    The entry point is `main(argv=None) -> int`. The exit codes are those in this module's
    docstring.
    """

    @functools.wraps(main)
    def entry(argv: list[str] | None = None) -> int:
        if not any(device.exists() for device in NVIDIA_DEVICES):
            logging.getLogger("jax._src.xla_bridge").addFilter(_is_not_an_idle_plugin)
        flags.forget()
        with _robust_streams():
            try:
                with Signals():
                    return _finished(main, argv)
            except KeyboardInterrupt as stop:
                number = stop.signal if isinstance(stop, Interrupted) else signal.SIGINT
                _print_last_line(LAST_LINES[number])
                return EXIT_CODES[number]
            except BrokenPipeError:
                discard(1)
                return BROKEN_PIPE
            except Exception as error:
                refusal = as_input_error(error)
                if refusal is None:
                    raise
                _print_last_line(f"error: {flags.in_flags(' '.join(str(refusal).splitlines()))}")
                return 2

    return entry


def command(parse: Callable[[list[str] | None], Any], module: str) -> Callable[..., int]:
    """An entry point that parses its flags before it imports the rest: `--help` needs no JAX.

    Args:
      parse: returns the command's arguments from `argv`.
      module: the module with the function `run(arguments) -> int`.
    """

    @entry_point
    def main(argv: list[str] | None = None) -> int:
        """Runs the command line; returns the exit code."""
        arguments = parse(argv)
        with importing(argv is None):
            run = importlib.import_module(module).run
        return run(arguments)

    return main


def _finished(main: Callable[[list[str] | None], int], argv: list[str] | None) -> int:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("the current folder no longer exists; change to another") from None
    try:
        code = main(argv)
    except SystemExit as stop:  # tyro's exit after --help, or rich's for a closed pipe
        if isinstance(stop.__context__, BrokenPipeError):
            return BROKEN_PIPE
        code = 2 if stop.code else 0
    sys.stdout.flush()
    return code


def as_input_error(error: Exception) -> InputError | None:
    """The error as one that the user can correct, with its remedy; None for a bug in lcjax."""
    if isinstance(error, InputError):
        return error
    if isinstance(error, OSError) and error.errno in ENVIRONMENT:
        what = str(error.filename or "standard output, or a file,")
        return InputError(f"{shortened(what)} cannot be used ({os.strerror(error.errno)}); {ENVIRONMENT[error.errno]}")
    # JAX's own error, recognized by its text because this module does not import JAX.
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        reason = str(error).splitlines()[0] if str(error) else "no memory is left"
        return InputError(
            f"not enough memory ({shortened(reason)}); use a smaller --max-seq-length, fewer "
            "sequences or a smaller model"
        )
    return None


def _is_not_an_idle_plugin(record: logging.LogRecord) -> bool:
    """False for JAX's traceback about a GPU plugin, installed for planning, without a GPU."""
    return not record.getMessage().startswith("Jax plugin configuration error")


@contextlib.contextmanager
def _robust_streams() -> Iterator[None]:
    """Makes standard streams exist and print "?" for characters that they cannot encode."""
    open_missing_streams()
    changed = []
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and getattr(stream, "errors", None) == "strict":
            changed.append(reconfigure)
            reconfigure(errors="replace")
    try:
        yield
    finally:
        for reconfigure in changed:
            reconfigure(errors="strict")


def _print_last_line(line: str) -> None:
    with contextlib.suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)
