"""Measures the time from a command to its first step, in a first run and in those after it.

    python scripts/bench_start.py
    python scripts/bench_start.py --model DIR --data book.txt --max-seq-length 16384

Without a model it is the demo's. The first run has an empty cache. Each run is stopped when it has
recorded its first step. Prints the seconds at which each line of its output appeared, and those of
user and system on all cores.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import tyro

from lcjax.cli.entry import entry_point
from lcjax.errors import InputError

FIRST_STEP = "first step"


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is trained, and how often it is started."""

    model: str | None = None
    """A Hugging Face directory or a .gguf file; with --data. By default the demo."""
    data: tuple[str, ...] = ()
    """Text files."""
    max_seq_length: int = 1024
    """Tokens in a row; the demo has its own."""
    runs: int = 3
    """How many runs; the first one has an empty cache."""
    csv: Path | None = None
    """A file for the raw numbers."""


@entry_point
def main(argv: list[str] | None = None) -> int:
    bench = tyro.cli(Bench, args=argv, description=__doc__)
    flags = [] if bench.model is None else ["--model", bench.model, "--data", *bench.data]
    flags += [] if bench.model is None else ["--max-seq-length", str(bench.max_seq_length)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for run in range(1, bench.runs + 1):
            for seconds, line in started(flags, Path(folder), f"run-{run}"):
                rows.append((run, f"{seconds:.2f}", line))
                print(f"run {run} {seconds:8.2f} s  {line[:90]}", flush=True)
    if bench.csv is not None:
        with bench.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("run", "seconds", "line"), *rows])
    return 0


def started(flags: list[str], folder: Path, name: str) -> list[tuple[float, str]]:
    """Seconds from the command's start to each line of its output and to its first step.

    Raises:
      InputError: the run ended before its first step.
    """
    out, before = folder / name, resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "lcjax.train", *flags, "--output-dir", str(out)]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    environment.pop("LCJAX_TOKEN_CACHE_GB", None)
    began = time.perf_counter()
    run = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    found: list[tuple[float, str]] = []

    def read() -> None:
        assert run.stderr is not None
        with run.stderr:
            for line in run.stderr:
                found.append((time.perf_counter() - began, line.rstrip()))

    reader = threading.Thread(target=read)
    reader.start()
    metrics = out / "metrics.jsonl"
    while run.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.01)
    seconds = time.perf_counter() - began
    if not metrics.exists():
        reader.join()
        raise InputError(f"the run ended before its first step ({found[-1][1] if found else 'no output'})")
    run.send_signal(signal.SIGTERM)
    run.wait()
    reader.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    until_step = [(at, line) for at, line in found if at <= seconds]
    return [*until_step, (seconds, f"{FIRST_STEP} ({cores:.1f} core seconds until the run had stopped)")]


if __name__ == "__main__":
    sys.exit(main())
