"""run.json: what a run was started with, for people and for the commands that read it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lcjax.data import Data
from lcjax.errors import InputError
from lcjax.model import Llama
from lcjax.train.disk import replacing, writing

RECORD = "run.json"
FORMAT = 1
_PACKAGES = ("lcjax", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "tokenizers", "transformers")


def write_run_record(
    output_dir: Path,
    started: datetime.datetime,
    first_step: int,
    arguments: dict[str, Any],
    model: Llama,
    data: Data,
    max_steps: int,
) -> None:
    """Writes the record when a process begins to train, all or nothing.

    Its content:
      format: 1.
      started: when the run was first started, ISO 8601 with the offset from UTC; the same in every resumed run.
      arguments: every argument of the run, defaults included, by the names of the flags. `model`, `data` and
        `max_seq_length` are always there, also where `lcjax.train` was called from a program.
      model: the resolved config and settings, and the dtype.
      data: its fingerprint, documents, tokens and rows.
      max_steps: the number of optimizer steps.
      sessions: for each process that trained, its time, its command, its working directory (paths are relative to it), the
        first step, versions and device.

    Args:
      output_dir: of the run.
      started: when the run was first started.
      first_step: the steps taken before this process.
      arguments: of the run; those that belong to the model are added.
      model: that is trained.
      data: that it is trained on.
      max_steps: the number of optimizer steps.

    Raises:
      InputError: the file cannot be written.
    """
    try:
        former = read_run_record(output_dir)
    except InputError:  # there is none, or it is damaged; all else that was in it is known
        former = {}
    same_run = former.get("started") == started.isoformat()
    sessions = [*(former["sessions"] if same_run else ()), _session(first_step)]
    settings = model.settings
    content = {
        "format": FORMAT,
        "started": started.isoformat(),
        "arguments": arguments | {"model": settings.name_or_path, "max_seq_length": settings.max_seq_length},
        "model": {"config": model.config, "settings": settings, "dtype": str(model.dtype)},
        "data": _describe(data),
        "max_steps": max_steps,
        "sessions": sessions,
    }
    path = output_dir / RECORD
    with writing(path), replacing(path) as temporary:
        temporary.write_text(json.dumps(as_json(content), indent=2) + "\n", encoding="utf-8")


def read_run_record(output_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a run's run.json; see `write_run_record`.

    Raises:
      InputError: there is none, it is damaged, or it is of a newer lcjax.
    """
    path = Path(output_dir) / RECORD
    if not path.is_file():
        raise InputError(f"{output_dir} has no {RECORD}; name the output directory of a run that lcjax.train wrote")
    try:
        content = json.loads(path.read_bytes())
        number = content["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is damaged ({error or type(error).__name__}); resuming the run writes it again"
        ) from None
    if number != FORMAT:
        raise InputError(f"{path} has format {number!r}, and this lcjax reads {FORMAT}; use the lcjax that wrote it")
    if not _is_whole(content):
        raise InputError(
            f"{path} is damaged (parts are missing, or of the wrong kind); resuming the run writes it again"
        )
    return content


def as_json(value: Any) -> Any:
    """Tuples to lists and paths to strings, so that the value equals what JSON gives back."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_json(dataclasses.asdict(value))
    return str(value) if isinstance(value, Path) else value


def path_from(working_directory: str, path: str) -> str:
    """A path that was given in a working directory, as it is to be opened in this one.

    Hub ids, and what is not there any more, stay as they are.
    """
    there = Path(working_directory, path)
    elsewhere = there.exists() and there.resolve() != Path(path).resolve()
    return str(there) if elsewhere else path


def started(folder: Path) -> datetime.datetime:
    """When the run in a folder was first started; now, where that is not recorded."""
    with contextlib.suppress(InputError):
        return datetime.datetime.fromisoformat(read_run_record(folder)["started"])
    return now()


def now() -> datetime.datetime:
    """The local time with its offset from UTC, in whole seconds."""
    return datetime.datetime.now().astimezone().replace(microsecond=0)


# Of the arguments, what other commands read: that they are there, and of which types.
_READ_ARGUMENTS = {
    "model": str,
    "data": list,
    "documents": str,
    "data_weights": list,
    "eval_fraction": (int, float),
    "seed": int,
    "max_seq_length": int,
}


def _is_whole(content: dict[str, Any]) -> bool:
    """Whether what others read of a record is there, and of the right kind."""
    arguments, sessions, data = content.get("arguments"), content.get("sessions"), content.get("data")
    return (
        _is_time(content.get("started"))
        and isinstance(data, dict)
        and isinstance(arguments, dict)
        and all(isinstance(arguments.get(name), kind) for name, kind in _READ_ARGUMENTS.items())
        and all(isinstance(path, str) for path in arguments["data"])
        and all(isinstance(weight, (int, float)) for weight in arguments["data_weights"])
        and isinstance(sessions, list)
        and bool(sessions)
        and all(isinstance(session, dict) and isinstance(session.get("working_directory"), str) for session in sessions)
    )


def _is_time(value: Any) -> bool:
    try:
        datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


def _describe(data: Data) -> dict[str, Any]:
    """What run.json says of the data."""
    return {
        "fingerprint": data.fingerprint(),
        "documents": data.num_documents,
        "tokens": len(data.corpus.tokens),
        "training_rows": len(data.train_plan),
        "held_out_rows": len(data.held_out_plan),
    }


def _session(first_step: int) -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        "started": now().isoformat(),
        "command": shlex.join(sys.orig_argv),
        "working_directory": os.getcwd(),
        "first_step": first_step,
        "versions": _versions(),
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
    }


def _versions() -> dict[str, str]:
    """Python's, and of the packages that decide a run's numbers and files; JAX's plugins for GPUs where they are installed."""
    names = {distribution.name for distribution in importlib.metadata.distributions()}
    plugins = sorted(name for name in names if name and name.startswith("jax-cuda"))
    found = {name: importlib.metadata.version(name) for name in (*_PACKAGES, *plugins) if name in names}
    return {"python": platform.python_version()} | found
