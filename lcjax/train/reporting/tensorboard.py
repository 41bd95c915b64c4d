"""Event files for TensorBoard."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from lcjax.train.disk import writing


class EventFile:
    """Scalars for TensorBoard.

    Written by this thread: the one behind tensorboardX's SummaryWriter dies of a full disk, and the next `add_scalar` would wait
    for it for ever.
    """

    def __init__(self, directory: Path, first_step: int):
        """A new file of events; TensorBoard forgets those of former files from `first_step` on."""
        # Imported here: a second of start-up that only training needs.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import scalar

        self.directory = directory
        self._event, self._scalar = Event, scalar
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            # tensorboardX's own names tell files apart by the second, and a new one would empty the old.
            self._writer = EventsWriter(str(directory / "events"), f".{time.time_ns()}")
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=first_step, session_log=start))

    def add(self, group: str, row: dict[str, Any]) -> None:
        """Adds all values of a row under `group/name`, those of a dictionary in it under `group/name/key`.

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
        with contextlib.suppress(OSError):  # the run has ended: well, and flushed before, or for this very reason
            self._writer.close()

    def _write(self, event) -> None:
        with writing(self.directory):
            self._writer.write_event(event)
