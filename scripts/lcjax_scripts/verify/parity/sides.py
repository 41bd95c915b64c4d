"""Starts and watches the processes of both sides, and reads their results."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lcjax_scripts.paths import python_path
from lcjax_scripts.verify.parity.interpreter.mosaic import THREADS
from lcjax_scripts.verify.parity.jobs import PARENT, Job, longest_first, result_path, save_jobs
from lcjax_scripts.verify.parity.results import SideResult, load

SIDES = ("jax", "torch")
JOBS = "jobs.json"
MOST_PROCESSES_A_SIDE = 8
SECONDS_BETWEEN_LOOKS = 0.1

Finished = tuple[Job, SideResult, SideResult]


def run_jobs(
    jobs: Sequence[Job], folder: Path, *, alone: bool = False, jax_python: str = sys.executable
) -> Iterator[Finished]:
    """Yields (job, JAX's result, torch's result) of each job when both sides have finished it.

    With `alone`, one process uses the device at a time; that of JAX is first. `jax_python` runs
    JAX's side.

    Raises:
      RuntimeError: a process died. The message has the end of its stderr.
    """
    save_jobs(longest_first(jobs), folder / JOBS)
    processes = []
    try:
        if alone:
            processes = [_start("jax", 0, folder, jax_python)]
            processes[0].wait()
            processes.append(_start("torch", 0, folder))
        else:
            # Start a process of each side per core, so that no core is idle when a side finishes.
            count = min(len(os.sched_getaffinity(0)), MOST_PROCESSES_A_SIDE, len(jobs))
            pythons = {"jax": jax_python, "torch": sys.executable}
            processes = [_start(side, n, folder, pythons[side]) for n in range(count) for side in SIDES]
        yield from _finished(jobs, folder, processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(side: str, number: int, folder: Path, python: str = sys.executable) -> subprocess.Popen:
    command = [python, "-m", f"lcjax_scripts.verify.parity.run_{side}", str(folder / JOBS)]
    # The sides share the GPU, if there is one.
    environment = os.environ | {
        "PYTHONPATH": python_path(),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        PARENT: str(os.getpid()),
    }
    if side == "jax":
        # On a GPU, XLA would spend most of the time of a shape on autotuning its own products.
        environment |= {name: os.environ.get(name, value) for name, value in THREADS.items()}
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()
    else:
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with _errors(folder, side, number).open("w") as stderr:
        return subprocess.Popen(command, env=environment, stderr=stderr)


def _errors(folder: Path, side: str, number: int) -> Path:
    return folder / f"{side}-{number}.stderr"


def _finished(jobs: Sequence[Job], folder: Path, processes: Sequence[subprocess.Popen]) -> Iterator[Finished]:
    pending = list(jobs)
    while pending:
        # Check for dead processes before listing files, so that the last results of a process are
        # not missed.
        dead = [process for process in processes if process.poll()]
        there = {entry.name for entry in os.scandir(folder)}
        paths = {job.key: [result_path(folder, job, side) for side in SIDES] for job in pending}
        done = [job for job in pending if all(path.name in there for path in paths[job.key])]
        for job in done:
            jax_path, torch_path = paths[job.key]
            yield job, load(jax_path), load(torch_path)
            for path in paths[job.key]:
                path.unlink()
        if done:
            pending = [job for job in pending if job not in done]
        elif dead:
            raise RuntimeError(f"a process of the harness ended with {dead[0].returncode}:\n{_stderr_tail(folder)}")
        else:
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _stderr_tail(folder: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8")[-2000:] for path in sorted(folder.glob("*.stderr")))
