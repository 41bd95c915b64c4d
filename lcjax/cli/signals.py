"""SIGINT and SIGTERM as exceptions that reach the command."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType


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
