"""Writes run.yaml, the arguments and circumstances of a run, for people and for commands."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lcjax.cli.outputs import written_atomically
from lcjax.config.run_record import FORMAT, FORMER, RECORD, as_json, now, read_run_record
from lcjax.config.yaml_files import as_yaml
from lcjax.data import Data
from lcjax.errors import InputError
from lcjax.model import Llama
from lcjax.train.disk import writing

_PACKAGES = ("lcjax", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "tokenizers", "transformers")
_HEADER = """\
# A run of lcjax. The same run again, in a new folder: lcjax train --config THIS_FILE
# arguments: what was asked for; resolved: what followed from it on this machine and for this model.
"""


def write_run_record(
    output_dir: Path,
    started: datetime.datetime,
    first_step: int,
    arguments: dict[str, Any],
    resolved: dict[str, Any],
    model: Llama,
    data: Data,
    origin: Mapping[str, Any],
) -> None:
    """Writes the record when a process begins to train, all or nothing.

    Its content:
      format: 2.
      started: when the run was first started, ISO 8601 with the offset from UTC; the same in every
        resumed run.
      arguments: every argument of the run, including defaults, by the names of the flags. `model`,
        `data` and `max_seq_length` are always present, even if a program called `lcjax.train`.
      resolved: the values that followed from the arguments, by the names of the flags.
      data: its fingerprint, documents, tokens and rows.
      max_steps: the number of optimizer steps.
      sessions: for each time that the run was started: its time, its command, its working directory
        (paths are relative to it), the first step, versions, devices and host.
      model: the resolved config.
      origin: what the run started from, if not from a new adapter; see `lcjax.train.start.record`.

    No environment variable is written, because some are secrets.

    Args:
      output_dir: of the run.
      started: when the run was first started.
      first_step: the steps taken before this process.
      arguments: of the run; those that belong to the model are added.
      resolved: from `lcjax.train.reporting.resolved`.
      model: the model that is trained.
      data: the data that it is trained on.
      origin: what the run started from; empty for a new adapter.

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
        "resolved": resolved,
        "data": _describe(data),
        "max_steps": resolved["max_steps"],
        "sessions": sessions,
        "model": {"config": model.config},
        **({"origin": origin} if origin else {}),
    }
    path = output_dir / RECORD
    with writing(path), written_atomically(path) as temporary:
        temporary.write_text(_HEADER + as_yaml(as_json(content)), encoding="utf-8")
    if same_run:
        # An earlier version's; its content is in the new file.
        (output_dir / FORMER).unlink(missing_ok=True)


def _describe(data: Data) -> dict[str, Any]:
    """The entry about the data in run.yaml."""
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
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
        },
        "host": {
            "system": f"{platform.system()} {platform.machine()}",
            "processors": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "processes": jax.process_count(),
        },
    }


def _versions() -> dict[str, str]:
    """Versions of Python and of the packages that determine a run's numbers and files.

    JAX's GPU plugins are included if they are installed.
    """
    names = {distribution.name for distribution in importlib.metadata.distributions()}
    plugins = sorted(name for name in names if name and name.startswith("jax-cuda"))
    found = {name: importlib.metadata.version(name) for name in (*_PACKAGES, *plugins) if name in names}
    return {"python": platform.python_version()} | found
