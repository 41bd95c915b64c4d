"""SIGINT and SIGTERM as exceptions that reach the command."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from lcjax.cli.startup import EXIT_CODES, LAST_LINES

# Seconds in which Python may end the command in order after a signal.
_GRACE_S = 1.0
_SHOW_CURSOR = "\x1b[?25h"


class Interrupted(KeyboardInterrupt):
    """A signal came when there was nothing to save; the message is its name."""

    @property
    def signal(self) -> signal.Signals:
        """The signal that came."""
        return signal.Signals[str(self)]


class Signals:
    """A context in which SIGTERM and SIGINT raise `Interrupted`.

    It does nothing outside the main thread, because only that thread receives signals.
    """

    def __init__(self):
        self._previous = {}
        self._previous_hook = sys.unraisablehook

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if sys.unraisablehook == self._on_unraisable:  # a hook set since then calls this one
            sys.unraisablehook = self._previous_hook

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        raise Interrupted(signal.Signals(number).name)

    def _on_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Sends the signal again if a callback of the garbage collector swallowed its exception.

        JAX has such a callback.
        """
        if not isinstance(unraisable.exc_value, Interrupted):
            return self._previous_hook(unraisable)
        threading.Timer(0.01, os.kill, (os.getpid(), unraisable.exc_value.signal)).start()


class WhileCompiling:
    """A context in which a signal ends the process even if a compiler does not return.

    Python calls its handlers of signals only between its own instructions, and XLA may compile for
    minutes. There must be nothing to save. It does nothing outside the main thread.
    """

    def __init__(self):
        self._left = threading.Event()
        self._pipe: tuple[int, int] | None = None
        self._previous = -1

    def __enter__(self) -> WhileCompiling:
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            # Python writes every signal's number there at once.
            self._previous = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=self._pipe[:1], daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._left.set()
        if self._pipe is not None:
            signal.set_wakeup_fd(self._previous)
            os.close(self._pipe[1])

    def _watch(self, reading: int) -> None:
        while number := os.read(reading, 1):
            if number[0] in EXIT_CODES and not self._left.wait(_GRACE_S):
                _end_at_once(signal.Signals(number[0]))
        os.close(reading)


def _end_at_once(number: signal.Signals) -> None:
    """Ends this process and those that it has started, such as assemblers of machine code."""
    with contextlib.suppress(OSError, ValueError):
        cursor = _SHOW_CURSOR if sys.stderr.isatty() else ""
        print(f"{cursor}{LAST_LINES[number]}", file=sys.stderr, flush=True)
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it has just ended
            for child in path.read_text().split():
                os.kill(int(child), signal.SIGTERM)
    os._exit(EXIT_CODES[number])
