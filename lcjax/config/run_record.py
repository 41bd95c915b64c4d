"""Reads run.yaml, the arguments and data of a run.

`lcjax.train.reporting.run_record` writes it. Earlier versions wrote run.json, which is read too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcjax.config.yaml_files import parse_yaml
from lcjax.errors import InputError

RECORD = "run.yaml"
FORMER = "run.json"
FORMAT = 2
FORMER_FORMAT = 1
_FORMATS = {RECORD: FORMAT, FORMER: FORMER_FORMAT}


def read_run_record(output_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a run's run.yaml, or of its run.json; see `write_run_record`.

    Raises:
      InputError: the file is missing, damaged, or from a newer lcjax.
    """
    path = record_of(output_dir)
    if path is None:
        raise InputError(f"{output_dir} has no {RECORD}; give the output directory of a run that lcjax.train wrote")
    try:
        content = parse_yaml(path.read_bytes()) if path.name == RECORD else json.loads(path.read_bytes())
        number = content["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is damaged ({error or type(error).__name__}); resuming the run writes it again"
        ) from None
    expected = _FORMATS[path.name]
    if number != expected:
        raise InputError(
            f"{path} has format {number!r}, but this lcjax reads format {expected}; use the lcjax that wrote it"
        )
    if not _is_whole(content):
        raise InputError(
            f"{path} is damaged (parts are missing or have the wrong type); resuming the run writes it again"
        )
    return content


def record_of(output_dir: str | os.PathLike[str]) -> Path | None:
    """The record of a run, of this version or of earlier ones; None if its folder has none."""
    paths = (Path(output_dir) / name for name in _FORMATS)
    return next((path for path in paths if path.is_file()), None)


def as_json(value: Any) -> Any:
    """Converts tuples to lists and paths to strings, as a JSON round trip does."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_json(dataclasses.asdict(value))
    return str(value) if isinstance(value, Path) else value


def path_from(working_directory: str, path: str) -> str:
    """Translates a path given in another working directory to the current one.

    Hub ids, and paths that no longer exist, are returned unchanged.
    """
    there = Path(working_directory, path)
    elsewhere = there.exists() and there.resolve() != Path(path).resolve()
    return str(there) if elsewhere else path


def started(folder: Path) -> datetime.datetime:
    """When the run in a folder was first started; now, if that is not recorded."""
    with contextlib.suppress(InputError):
        return datetime.datetime.fromisoformat(read_run_record(folder)["started"])
    return now()


def now() -> datetime.datetime:
    """The local time with its offset from UTC, in whole seconds."""
    return datetime.datetime.now().astimezone().replace(microsecond=0)


# The arguments that other commands read, and their types.
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
    """Whether everything that other commands read from a record exists and has the right type."""
    arguments, sessions, data = content.get("arguments"), content.get("sessions"), content.get("data")
    return (
        _is_time(content.get("started"))
        and isinstance(data, dict)
        and isinstance(arguments, dict)
        and all(isinstance(arguments.get(name), kind) for name, kind in _READ_ARGUMENTS.items())
        and all(isinstance(path, str) for path in arguments["data"])
        and all(isinstance(weight, (int, float)) for weight in arguments["data_weights"])
        and isinstance(arguments.get("columns", []), list)
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
