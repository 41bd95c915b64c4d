"""SIGTERM and SIGINT ask a run to stop after the step at hand."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequest:
    """A context in which the first SIGTERM or SIGINT only sets `requested`; a second SIGINT interrupts as usual."""

    def __init__(self):
        self.requested: str | None = None
        self._previous = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
