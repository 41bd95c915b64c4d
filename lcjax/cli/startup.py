"""The start and the end of a program: before imports, and after the command has ended.

This module uses only a small part of the standard library, because it is imported before everything
else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""The shell's exit codes of the signals that end a command quietly."""

BROKEN_PIPE = 141
"""The shell's exit code if the reader of standard output has exited, as in `... | head`."""

LAST_LINES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""What a command prints about the signal that ended it."""

# Seconds that imports may take before a line is printed.
_SILENT_SECONDS = 2.0


# Whether a program of lcjax runs, rather than another one that calls lcjax.
_is_program = False


def is_a_program() -> None:
    """From now on, `importing` takes the process for a program of lcjax."""
    global _is_program
    _is_program = True


def end_quietly_on_signals() -> None:
    """Until the command takes over, a signal ends the process with one line.

    There is nothing to save yet.
    """
    for number in EXIT_CODES:
        signal.signal(number, _leave_at_once)


@contextlib.contextmanager
def importing(is_program: bool) -> Iterator[None]:
    """A context in which a program imports its libraries.

    It prints a line if that takes long, and exits at once on a signal. A signal's exception would
    pass through half-imported libraries, some of which print it, continue or crash. If `is_program`
    is false, because another program imports the module, nothing is changed.
    """
    if not (is_program or _is_program) or threading.current_thread() is not threading.main_thread():
        yield
        return
    open_missing_streams()
    # Pictures are written to files. A notebook's backend, which its shell commands inherit, may not
    # be installed here.
    os.environ["MPLBACKEND"] = "agg"
    timer = threading.Timer(_SILENT_SECONDS, _write, ["importing JAX and its libraries"])
    timer.daemon = True
    timer.start()
    before = {number: signal.getsignal(number) for number in EXIT_CODES}
    end_quietly_on_signals()
    try:
        yield
    finally:
        timer.cancel()
        for number, handler in before.items():
            if handler not in (
                signal.SIG_DFL,
                signal.default_int_handler,
            ):  # otherwise the command installs its own handlers soon
                signal.signal(number, handler)


def leave(code: int) -> None:
    """Ends the process with an exit code.

    Signals and closed pipes no longer disturb what libraries do at exit.
    """
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            discard(stream.fileno())
    sys.exit(code)


def open_missing_streams() -> None:
    """Opens the null device for standard streams that were closed at the start (`<&-`, `>&-`).

    Otherwise the next opened file would get the stream's number, and output would overwrite it.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def discard(descriptor: int) -> None:
    """From now on, discards what is written to a file descriptor."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    _write(LAST_LINES[signal.Signals(number)])
    os._exit(EXIT_CODES[signal.Signals(number)])


def _write(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
