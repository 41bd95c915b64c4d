"""The processes of a run on several hosts, as a user describes them."""

from __future__ import annotations

import dataclasses

from lcjax.errors import InputError, flag


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run, as a user describes them; None leaves a value to detection.

    Attributes:
      coordinator: HOST:PORT at which process 0 listens.
      num_processes: their number.
      process_id: of this process, from 0.

    Raises:
      InputError: only some of the values are given, or one is out of range.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self):
        values = {flag(name): value for name, value in dataclasses.asdict(self).items()}
        missing = [name for name, value in values.items() if value is None]
        if len(missing) == len(values):
            return
        if missing:
            raise InputError(f"{' and '.join(missing)} must be given, too, for a run of several processes")
        assert self.coordinator is not None
        assert self.num_processes is not None
        assert self.process_id is not None
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65_536:
            raise InputError(f"--coordinator {self.coordinator!r} is no address; give HOST:PORT, such as node0:12345")
        if not 0 <= self.process_id < self.num_processes:
            raise InputError(
                f"--process-id {self.process_id} is out of range for --num-processes {self.num_processes}; "
                "number the processes from 0"
            )
