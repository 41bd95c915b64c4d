"""Where a run's rows go in addition to its own files: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from lcjax.config.training import TRACKERS, TrainingArguments
from lcjax.errors import InputError, unknown
from lcjax.parallel.processes import writes_files
from lcjax.train.reporting.tensorboard import EventFile

# The packages of the trackers that lcjax does not install by default.
_OPTIONAL = ("wandb", "mlflow")


class Tracker(Protocol):
    """Takes the numbers of steps and evaluations."""

    def add(self, group: str, row: dict[str, Any]) -> None:
        """Adds all values of a row under `group/name`, nested ones under `group/name/key`."""
        ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def check_trackers(arguments: TrainingArguments) -> None:
    """Raises InputError for an unknown name of --report-to, or one whose package is missing."""
    names = arguments.report_to
    for name in names:
        if name not in TRACKERS:
            raise InputError(unknown("report_to", name, TRACKERS))
        if name in _OPTIONAL and find_spec(name) is None:
            raise InputError(
                f"--report-to {name} needs the package {name}, which is not installed: pip install 'lcjax[{name}]'"
            )
    if "none" in names and len(names) > 1:
        raise InputError(f"--report-to {' '.join(names)} contradicts itself; give none alone, or omit none")


def open_trackers(names: tuple[str, ...], output_dir: Path, first_step: int) -> list[Tracker]:
    """The trackers of a run that continues with `first_step`; only the first process has others
    than TensorBoard.
    """
    found: list[Tracker] = []
    if "tensorboard" in names:
        found.append(EventFile(output_dir / "tensorboard", first_step))
    if writes_files() and "wandb" in names:
        found.append(WandbRun(output_dir))
    if writes_files() and "mlflow" in names:
        found.append(MlflowRun(output_dir))
    return found


class WandbRun:
    """A run of Weights & Biases; WANDB_MODE, WANDB_PROJECT and the like apply.

    A resumed run goes on under the same id. Weights & Biases ignores steps that it already has.
    """

    def __init__(self, output_dir: Path):
        import wandb  # pyright: ignore[reportMissingImports]

        with _starting("wandb"):
            self._run = wandb.init(
                project=None if _in_environment("WANDB_PROJECT") else "lcjax",
                name=output_dir.name,
                id=_id_of(output_dir),
                resume="allow",
                dir=str(output_dir),
            )

    def add(self, group: str, row: dict[str, Any]) -> None:
        self._run.log(dict(_flat(group, row)), step=row["step"])

    def flush(self) -> None:
        """Nothing: a process of Weights & Biases writes the rows."""

    def close(self) -> None:
        self._run.finish()


class MlflowRun:
    """A run of MLflow, in the place that MLFLOW_TRACKING_URI names.

    A resumed run is a new run of MLflow with the same name.
    """

    def __init__(self, output_dir: Path):
        import mlflow  # pyright: ignore[reportMissingImports]

        self._mlflow = mlflow
        with _starting("mlflow"):
            mlflow.start_run(run_name=output_dir.name)

    def add(self, group: str, row: dict[str, Any]) -> None:
        self._mlflow.log_metrics({name: float(value) for name, value in _flat(group, row)}, step=row["step"])

    def flush(self) -> None:
        """Nothing: every row is sent at once."""

    def close(self) -> None:
        self._mlflow.end_run()


def _flat(group: str, row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _flat(f"{group}/{name}", value)
        elif name != "step":
            yield f"{group}/{name}", value


def _id_of(output_dir: Path) -> str:
    """The same for every session of a run in this folder."""
    return hashlib.sha256(str(output_dir.absolute()).encode()).hexdigest()[:16]


def _in_environment(name: str) -> bool:
    return bool(os.environ.get(name))


@contextlib.contextmanager
def _starting(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of a library with many kinds, for a missing account or server
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--report-to {name} cannot start ({reason}); see its documentation, or omit it") from error
