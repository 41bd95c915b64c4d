"""SIGTERM and SIGINT: at once while there is nothing to save, after the step at hand from then on."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A signal came while there was nothing to save; the message is its name."""


class StopRequest:
    """A context in which SIGTERM and SIGINT raise `Interrupted`; after `defer()` the first one only sets `requested`.

    A second SIGINT then raises KeyboardInterrupt.
    """

    def __init__(self):
        self.requested: str | None = None
        self._deferred = False
        self._previous = {}
        self._previous_hook = sys.unraisablehook

    def defer(self) -> None:
        """From here on, whoever polls `requested` saves and stops."""
        self._deferred = True

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._previous_hook

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self._deferred:
            raise Interrupted(name)
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = name

    def _on_unraisable(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Sends the signal again where a callback of the garbage collector (JAX has one) has swallowed what it raised."""
        if not isinstance(unraisable.exc_value, Interrupted):
            return self._previous_hook(unraisable)
        threading.Timer(0.01, os.kill, (os.getpid(), signal.Signals[str(unraisable.exc_value)])).start()
