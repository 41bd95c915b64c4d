"""The process of one side: `python -m lcjax_scripts.bench.training.worker lcjax|peft SETUP`.

SETUP is JSON. The last line of the output has tokens per second, peak memory and losses as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from lcjax_scripts.bench.training.setup import Setup
from lcjax_scripts.bench.training.sides import STEPS
from lcjax_scripts.paths import python_path


def run_side(side: str, setup: Setup) -> dict[str, Any]:
    """Runs one round of a side in a separate process."""
    command = [sys.executable, "-m", "lcjax_scripts.bench.training.worker", side]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": python_path()}
    arguments = json.dumps(dataclasses.asdict(setup))
    done = subprocess.run([*command, arguments], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main(side: str, arguments: str) -> int:
    setup = Setup(**json.loads(arguments))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: setup.threads])
    print(json.dumps(_measure(STEPS[side](setup), setup)))
    return 0


def _measure(step: Callable[[], float], setup: Setup) -> dict[str, Any]:
    losses, seconds = [], []
    for _ in range(1 + setup.steps):
        began = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"tokens_per_second": setup.tokens / min(seconds[1:]), "peak_gib": peak / 2**30, "losses": losses}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
