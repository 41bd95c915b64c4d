"""The files of a finished adapter or model; an unfinished or damaged one is refused."""

from __future__ import annotations

import json
from pathlib import Path

from lcjax.errors import InputError
from lcjax.weights.hf import INDEX, SINGLE_FILE, read_index
from lcjax.weights.peft import CONFIG_FILE, WEIGHTS_FILE
from lcjax.weights.safetensors_files import read_header


def finished_files(directory: Path) -> list[Path]:
    """All files of a directory that others need, relative to it, sorted.

    Hidden files and folders are left out: they are of interrupted saves.

    Raises:
      InputError: it is not a finished adapter or model, its weights are damaged, or a file is a
        link to one outside of it.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory; give the folder of an adapter or of a model")
    for weights in _weights(directory):
        read_header(directory / weights, packed=True)
    paths = (path for path in directory.rglob("*") if path.is_file())
    names = (path.relative_to(directory) for path in paths)
    names = sorted(name for name in names if not any(part.startswith(".") for part in name.parts))
    for name in names:
        _refuse_link_to_another_folder(directory, name)
    return names


def _refuse_link_to_another_folder(directory: Path, name: Path) -> None:
    """A file that is not of this model could be uploaded without being noticed."""
    inside, target = directory.resolve(), (directory / name).resolve()
    if inside.parent.name == "snapshots":  # of the hub's cache: its files are links
        inside = inside.parent.parent
    if not target.is_relative_to(inside):
        raise InputError(
            f"{directory / name} is a link to {target}, outside of the folder; remove it, or put the file in its place"
        )


def local_base(directory: Path) -> str | None:
    """The base model's path, if an adapter's config names a path, which others cannot use."""
    try:
        base = json.loads((directory / CONFIG_FILE).read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_path = isinstance(base, str) and (Path(base).exists() or base.startswith(("/", ".", "~")) or base.count("/") > 1)
    return base if is_path else None


def _weights(directory: Path) -> list[str]:
    """The names of the files with the weights."""
    if (directory / CONFIG_FILE).is_file():
        return [WEIGHTS_FILE]
    if (directory / "config.json").is_file():
        index = directory / INDEX
        return sorted({*read_index(index).values()}) if index.exists() else [SINGLE_FILE]
    inner = [name for name in ("adapter", "model") if (directory / name).is_dir()]
    if inner:
        raise InputError(f"{directory} is the folder of a run; give {directory / inner[0]}")
    raise InputError(
        f"{directory} has neither {CONFIG_FILE} nor config.json, so it is not a finished adapter or model; give the "
        "folder adapter/ or model/ of a run that has ended, or a merged model"
    )
