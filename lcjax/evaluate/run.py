"""The settings that an evaluation takes from a run's run.yaml."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lcjax.config.run_record import path_from, read_run_record, record_of
from lcjax.errors import InputError

# Arguments that lcjax.train and an evaluation share.
_SHARED = ("max_seq_length", "rope_scaling", "rope_theta", "dtype", "quantize", "seed")
_OF_THE_DATA = ("documents", "columns", "eval_fraction", "data_weights")


@dataclasses.dataclass(frozen=True)
class TrainingText:
    """The data settings of a run: paths that can be opened from here, and the split."""

    data: tuple[str, ...]
    documents: str
    data_weights: tuple[float, ...]
    eval_fraction: float
    seed: int
    columns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder written by lcjax.train, and the content of its run.yaml."""

    folder: Path
    record: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Raises InputError if there is no such record, or it is damaged."""
        return cls(folder, read_run_record(folder))

    @classmethod
    def of_adapter(cls, adapter: Path | None) -> Run | None:
        """The run whose folder contains an adapter, if there is one."""
        if adapter is None or record_of(adapter.parent) is None:
            return None
        return cls.read(adapter.parent)

    @property
    def text(self) -> TrainingText:
        """What it was trained on, and what it held out."""
        arguments = self.record["arguments"]
        paths = tuple(self._here(path) for path in arguments["data"])
        weights = tuple(arguments["data_weights"])
        # Runs of earlier versions have no columns.
        columns = tuple(arguments.get("columns", ()))
        return TrainingText(
            paths, arguments["documents"], weights, arguments["eval_fraction"], arguments["seed"], columns
        )

    def defaults(self, *, own_data: bool) -> dict[str, Any]:
        """Arguments of an evaluation of this run.

        If `own_data` is False, because other data is given, the settings of the run's data are
        omitted.

        Raises:
          InputError: the run has left neither adapter nor model.
        """
        arguments = self.record["arguments"]
        values = {name: arguments[name] for name in _SHARED if arguments.get(name) is not None}
        values |= {"run": self.folder} | self._weights()
        if own_data:
            values |= {name: getattr(self.text, name) for name in ("data", *_OF_THE_DATA)}
        return values

    def _weights(self) -> dict[str, Any]:
        adapter, model = self.folder / "adapter", self.folder / "model"
        if adapter.is_dir():
            return {"model": self._here(self.record["arguments"]["model"]), "adapter": adapter}
        if model.is_dir():
            return {"model": str(model)}
        raise InputError(
            f"{self.folder} has neither adapter/ nor model/, which a finished run has; resume "
            f"it: lcjax train --output-dir {self.folder} --resume-from-checkpoint "
            "latest"
        )

    def _here(self, path: str) -> str:
        return path_from(self.record["sessions"][-1]["working_directory"], path)
