"""Runs `lcjax train` in a separate process, and watches the files that it writes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lcjax.train.reporting.measuring import MEASURED

DEADLINE_S = 600

# Flags of a run of 4 steps that saves and evaluates after every second one. Model, data and folder
# must be added.
SHORT = (
    "--max-seq-length 48 --max-steps 4 --save-steps 2 --eval-steps 2 --eval-fraction 0.2 --lora-r 2 --seed 7".split()
)


def start(arguments: Sequence[str | Path], cwd: Path, cache: Path, **variables: str) -> subprocess.Popen[str]:
    """Starts a run. `cache` is the user's cache folder, which has compiled steps."""
    return launch([sys.executable, "-m", "lcjax.train", *map(str, arguments)], cwd, cache, **variables)


def launch(command: list[str] | str, cwd: Path, cache: Path, **variables: str) -> subprocess.Popen[str]:
    """Starts a command. A string runs in the shell, where `python` is that of the tests."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(cache),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        **variables,
    }
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        shell=isinstance(command, str),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Returns (exit code, all output)."""
    output, _ = process.communicate(timeout=DEADLINE_S)
    return process.returncode, output


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], every_s: float = 0.01) -> None:
    """Looks every `every_s` seconds until the condition holds. Fails if the process ends before."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, f"ended too early: {process.communicate()[0]}"
        assert time.monotonic() < deadline, "timed out"
        time.sleep(every_s)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def kill_during_save(process: subprocess.Popen[str], checkpoints: Path) -> Path:
    """Kills the process while a checkpoint is partly written; returns the incomplete save.

    The process is stopped first, to check that the save is incomplete.
    """
    while True:
        wait_until(lambda: bool(torn_saves(checkpoints)), process, every_s=0.0005)
        process.send_signal(signal.SIGSTOP)
        torn = torn_saves(checkpoints)
        if torn:
            kill(process)
            assert torn_saves(checkpoints) == torn
            return torn[0]
        process.send_signal(signal.SIGCONT)  # the save was complete; try the next one


def torn_saves(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob(".*.partial-*"))


def complete_saves(checkpoints: Path) -> list[int]:
    return sorted(int(path.name) for path in checkpoints.glob("*") if path.name.isdigit())


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def metrics_of(run: Path) -> list[dict]:
    """Returns a run's metrics without measured times."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in metrics:
        assert row["tokens_per_second"] > 0
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in metrics]


def records(run: Path) -> dict[str, object]:
    """Returns what two runs with the same arguments must have in common, bit for bit.

    Only measured times and bytes are excluded.
    """
    return {
        "metrics": metrics_of(run),
        "evaluation": (run / "evaluation.jsonl").read_text().splitlines(),
        "adapter": (run / "adapter" / "adapter_model.safetensors").read_bytes(),
    }


def contents(folder: Path) -> dict[str, str]:
    """Returns the digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
