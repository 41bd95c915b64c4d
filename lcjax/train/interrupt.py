"""SIGTERM and SIGINT: they stop at once until training starts, then after the current step."""

from __future__ import annotations

import signal
from types import FrameType

from lcjax.cli.signals import Interrupted as Interrupted
from lcjax.cli.signals import Signals


class StopRequest(Signals):
    """A context in which SIGTERM and SIGINT raise `Interrupted`.

    After `defer()` the first signal only sets `requested`, and a second SIGINT raises
    KeyboardInterrupt.
    """

    def __init__(self):
        super().__init__()
        self.requested: str | None = None
        self._deferred = False

    def defer(self) -> None:
        """From now on a signal only sets `requested`; the loop polls it, saves and stops."""
        self._deferred = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._deferred:
            super()._on_signal(number, frame)
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
