"""The jobs of a run, and the loop of a side's process over its share of them."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from lcjax_scripts.verify.cases import AttentionShape, LongShape, ModelShape, RopeShape, Shape
from lcjax_scripts.verify.inputs import Arrays, Options, make_inputs
from lcjax_scripts.verify.mutants import MUTANTS
from lcjax_scripts.verify.parity.results import Outcome, SideResult, save

PARENT = "PARITY_PARENT"
"""Environment variable with the parent's process id.

The parent may already have ended when a side starts, so the side cannot look up the id itself.
"""
SECONDS_BETWEEN_LOOKS_AT_THE_PARENT = 0.5


@dataclasses.dataclass(frozen=True)
class Job:
    """One shape for every implementation; `mutant` is injected into all but the references."""

    key: str
    """The stem of the job's file names."""
    name: str
    """The name of the shape, which seeds its inputs."""
    shape: Shape
    mutant: str | None = None
    model_file: Path | None = None
    """The GGUF file of a ModelShape."""

    @property
    def call_shape(self) -> AttentionShape | RopeShape:
        assert isinstance(self.shape, AttentionShape | RopeShape)
        return self.shape

    def inputs(self) -> tuple[Arrays, Options]:
        return make_inputs(self.name, self.call_shape)

    def planted_inputs(self) -> tuple[Arrays, Options]:
        """Returns the inputs of the implementations, changed by the mutant if there is one."""
        inputs = self.inputs()
        if self.mutant is None or MUTANTS[self.mutant].operation != self.shape.operation:
            return inputs
        return MUTANTS[self.mutant].plant(*inputs)


def longest_first(jobs: Sequence[Job]) -> list[Job]:
    """Returns the jobs, longest first, so that no process has a long job left at the end."""
    return sorted(jobs, key=lambda job: job.shape.work, reverse=True)


def save_jobs(jobs: Sequence[Job], path: Path) -> None:
    rows = [dataclasses.asdict(job) | {"operation": job.shape.operation} for job in jobs]
    path.write_text(json.dumps(rows, default=str), encoding="utf-8")


def load_jobs(path: Path) -> list[Job]:
    return [_job(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def _job(*, operation: str, shape: dict, model_file: str | None, **fields) -> Job:
    kinds = {kind.operation: kind for kind in (AttentionShape, RopeShape, ModelShape, LongShape)}
    return Job(shape=kinds[operation](**shape), model_file=Path(model_file) if model_file else None, **fields)


def work(side: str, run: Callable[[Job], SideResult], jobs_file: str) -> int:
    """The main loop of a side's process.

    It runs every job that no other process of that side has claimed, and saves the results to the
    folder of the jobs file.
    """
    threading.Thread(target=_end_with, args=(int(os.environ.get(PARENT, os.getppid())),), daemon=True).start()
    path = Path(jobs_file)
    for job in load_jobs(path):
        if _claim(path.parent / f"{job.key}.{side}.claim"):
            save(run(job), result_path(path.parent, job, side))
    return 0


def _end_with(parent: int) -> None:
    """Ends this process when its parent has ended, for example because it was killed."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS_AT_THE_PARENT)
    os._exit(1)


def _claim(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def result_path(folder: Path, job: Job, side: str) -> Path:
    return folder / f"{job.key}.{side}.npz"


def outcome_of(compute: Callable[[], dict], refusal: type[Exception] | tuple[()] = ()) -> Outcome:
    """Returns the tensors, or the error message of an implementation.

    An error fails the case, but not the run. A `refusal` is raised again.
    """
    try:
        return compute()
    except refusal:
        raise
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return " ".join(f"{type(error).__name__}: {error}".split())[:500]
