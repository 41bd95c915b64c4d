"""Writes run.json, the arguments and circumstances of a run, for people and for commands."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import jax

from lcjax.cli.outputs import written_atomically
from lcjax.config.run_record import FORMAT, RECORD, as_json, now, read_run_record
from lcjax.data import Data
from lcjax.errors import InputError
from lcjax.model import Llama
from lcjax.train.disk import writing

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
      started: when the run was first started, ISO 8601 with the offset from UTC; the same in every
        resumed run.
      arguments: every argument of the run, including defaults, by the names of the flags. `model`,
        `data` and `max_seq_length` are always present, even if a program called `lcjax.train`.
      model: the resolved config and settings, and the dtype.
      data: its fingerprint, documents, tokens and rows.
      max_steps: the number of optimizer steps.
      sessions: for each process that trained: its time, its command, its working directory (paths
        are relative to it), the first step, versions and device.

    Args:
      output_dir: of the run.
      started: when the run was first started.
      first_step: the steps taken before this process.
      arguments: of the run; those that belong to the model are added.
      model: the model that is trained.
      data: the data that it is trained on.
      max_steps: the number of optimizer steps.

    Raises:
      InputError: the file cannot be written.
    """
    try:
        former = read_run_record(output_dir)
    except InputError:  # missing or damaged; its other content is known
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
    with writing(path), written_atomically(path) as temporary:
        temporary.write_text(json.dumps(as_json(content), indent=2) + "\n", encoding="utf-8")


def _describe(data: Data) -> dict[str, Any]:
    """The entry about the data in run.json."""
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
    """Versions of Python and of the packages that determine a run's numbers and files.

    JAX's GPU plugins are included if they are installed.
    """
    names = {distribution.name for distribution in importlib.metadata.distributions()}
    plugins = sorted(name for name in names if name and name.startswith("jax-cuda"))
    found = {name: importlib.metadata.version(name) for name in (*_PACKAGES, *plugins) if name in names}
    return {"python": platform.python_version()} | found
