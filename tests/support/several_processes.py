"""Runs `lcjax train` in several processes of one machine, with two CPU devices each."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import start
from tests.support.xla_options import QUICKEST_TO_COMPILE, as_flags

DEVICES = 2


def start_together(
    arguments: Sequence[str | Path],
    cwd: Path,
    cache: Path,
    extra: Sequence[Sequence[str]] = ((), ()),
    devices: Sequence[int] = (DEVICES, DEVICES),
) -> list[subprocess.Popen[str]]:
    """Starts one process for each item of `extra`, which is added to its arguments."""
    address = f"127.0.0.1:{free_port()}"
    return [
        start(
            [*arguments, "--coordinator", address, "--num-processes", str(len(extra)), "--process-id", str(i), *more],
            cwd,
            cache,
            XLA_FLAGS=f"{as_flags(QUICKEST_TO_COMPILE)} --xla_force_host_platform_device_count={count}",
        )
        for i, (more, count) in enumerate(zip(extra, devices, strict=True))
    ]


def free_port() -> int:
    """Returns a port that nobody uses at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
