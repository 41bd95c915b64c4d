"""A program's first and last moments: what holds before libraries are imported and after the command has ended.

Uses the standard library alone, and little of it: it is imported before everything else.
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
"""The shell's exit code where the reader of standard output has gone, as in `... | head`."""

LAST_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""What a command says of the signal that ended it."""

# Seconds that imports may take in silence.
_PATIENCE = 2.0


def end_quietly_on_signals() -> None:
    """A signal ends the process in one line, until the command takes over: there is nothing to save yet."""
    for number in EXIT_CODES:
        signal.signal(number, _leave_at_once)


@contextlib.contextmanager
def importing(is_program: bool) -> Iterator[None]:
    """A context in which a program imports its libraries: says so where that takes long, and ends at once on a signal.

    A signal's exception would pass through half-imported libraries, some of which print it or go on. Where `is_program` is false,
    because somebody else's program imports the module, nothing is changed.
    """
    if not is_program or threading.current_thread() is not threading.main_thread():
        yield
        return
    open_missing_streams()
    # Pictures go to files. A notebook's backend, which its shell commands inherit, may not be installed here.
    os.environ["MPLBACKEND"] = "agg"
    timer = threading.Timer(_PATIENCE, _write, ["importing JAX and its libraries"])
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
            ):  # else the command takes over, a moment later
                signal.signal(number, handler)


def leave(code: int) -> None:
    """Ends the process with an exit code; what libraries do at exit is no longer disturbed by signals or closed pipes."""
    for number in EXIT_CODES:
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            discard(stream.fileno())
    sys.exit(code)


def open_missing_streams() -> None:
    """Gives a process that was started with closed standard streams (`<&-`, `>&-`) the null device in their place.

    Otherwise the next file to be opened would get the stream's number, and be written over by whoever writes to it.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def discard(descriptor: int) -> None:
    """Sends what is written to a file descriptor to the null device from now on."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    _write(LAST_WORDS[signal.Signals(number)])
    os._exit(EXIT_CODES[signal.Signals(number)])


def _write(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
