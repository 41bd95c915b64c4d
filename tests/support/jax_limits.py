"""The memory limits that a program sets before JAX starts. Later ones have no effect."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

from lcjax.memory.allocators import pinnable_bytes

SHARE, SHARE_OF_OLD, HOST = (
    "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB",
)

_ROOT = Path(__file__).resolve().parents[2]
_NO_PLATFORM = "nonesuch"
_PROGRAM = """
import os, sys
try:
    exec(sys.argv.pop(1))
except RuntimeError as error:
    assert sys.argv[1] in str(error), error
    print(*(os.environ.get(name, "unset") for name in sys.argv[2:]))
"""


def limits_of_a_small_run() -> tuple[str, str]:
    """Returns the expected `limits_at_start` of a step of a few megabytes.

    The limits have 8 GiB more, for weights that are being loaded.
    """
    return "0.97", str(min(9, math.ceil(pinnable_bytes() / 2**30)))


def limits_at_start(program: str) -> tuple[str, str]:
    """Returns (fraction of the GPU, GiB of the host) that a program sets.

    The program runs in a separate process until it requests a device, which does not exist.
    """
    names = (SHARE, HOST)
    environment = {name: value for name, value in os.environ.items() if name not in (*names, SHARE_OF_OLD)}
    environment |= {"JAX_PLATFORMS": _NO_PLATFORM, "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "scripts")])}
    command = [sys.executable, "-c", _PROGRAM, program, _NO_PLATFORM, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    share, host = done.stdout.split()
    return share, host
