"""Event files for TensorBoard."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lcjax.train.disk import writing


class EventFile:
    """Scalars for TensorBoard.

    They are written by this thread. The thread behind tensorboardX's SummaryWriter dies if the disk
    is full, and the next `add_scalar` would wait for it forever.
    """

    def __init__(self, directory: Path, first_step: int):
        """Opens a new event file; TensorBoard drops older files' events from `first_step` on."""
        # Imported here: only training needs it.
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboardX.summary import scalar

        self.directory = directory
        self._event, self._scalar = Event, scalar
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            # tensorboardX's own names distinguish files by the second, and a new file would
            # overwrite the old one.
            self._writer = EventsWriter(str(directory / "events"), f".{time.time_ns()}")
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=first_step, session_log=start))

    def add(self, group: str, row: dict[str, Any]) -> None:
        """Adds all values of a row under `group/name`, nested ones under `group/name/key`.

        Raises:
          InputError: the file cannot be written.
        """
        for name, value in row.items():
            if isinstance(value, dict):
                self.add(f"{group}/{name}", {"step": row["step"], **value})
            elif name != "step":
                summary = self._scalar(f"{group}/{name}", value)
                self._write(self._event(wall_time=time.time(), step=row["step"], summary=summary))

    def flush(self) -> None:
        with writing(self.directory):
            self._writer.flush()

    def close(self) -> None:
        # the run has ended, either flushed or because of this error
        with contextlib.suppress(OSError):
            self._writer.close()

    def _write(self, event) -> None:
        with writing(self.directory):
            self._writer.write_event(event)


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Imports as if PyTorch were not installed, unless it is already imported.

    tensorboardX would import it for tensors, which are not used here; that takes a second.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules["torch"]
