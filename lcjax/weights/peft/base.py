"""Whether an adapter belongs to another base model of the same shapes, which no tensor shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from lcjax.errors import InputError
from lcjax.model.params import tensor_names
from lcjax.weights.assembly import DTYPES, Checkpoint
from lcjax.weights.hf import open_checkpoint
from lcjax.weights.peft.config import read_adapter_config
from lcjax.weights.peft.names import CONFIG_FILE

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
# Copies of a model on the hub, in other formats, have such names.
_OF_COPIES = re.compile(r"^meta-|([-_.](unsloth|bnb|[48]-?bit|awq|gptq|int[48]|fp8|bf16|fp16|hf|dynamic))+$")
# A format with a smaller range changes some of the smallest values.
_MOST_CHANGED = 0.1


def other_base(directory: Path, model: str) -> str | None:
    """A line about an adapter that was trained on another model than the given one.

    Two hub ids are compared by name, and two directories on this disk by some of their weights. A
    name cannot be compared with a directory.

    Args:
      directory: the adapter's.
      model: the path or hub id of the model that it is loaded with.

    Returns:
      The line, or None if both are the same model, or if that is not known.
    """
    base = read_adapter_config(directory / CONFIG_FILE).get("base_model_name_or_path")
    if not isinstance(base, str) or not base or not model:
        return None
    ids, folders = [_hub_id(name) for name in (base, model)], [_folder(name) for name in (base, model)]
    if None not in ids:
        differ = len({_plain(str(name)) for name in ids}) > 1
    elif None not in folders:
        differ = _have_other_weights(*(Path(str(folder)) for folder in folders))
    else:
        differ = False
    if not differ:
        return None
    return f"the adapter in {directory} was trained on {base[:200]}, and the model is {model}; load it with the former"


def _hub_id(name: str) -> str | None:
    if found := _CACHED.search(name):
        return "/".join(found.groups())
    return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else None


def _folder(name: str) -> Path | None:
    path = Path(name).expanduser()
    return path if path.is_dir() else None


def _plain(hub_id: str) -> str:
    """The name of a model without its owner and its format."""
    return _OF_COPIES.sub("", hub_id.split("/")[-1].lower())


def _have_other_weights(first: Path, second: Path) -> bool:
    if first.samefile(second):
        return False
    try:
        rows, others = (_some_rows(open_checkpoint(folder)) for folder in (first, second))
    except (InputError, OSError):  # the model that the adapter is loaded with was read before
        return False
    common = [name for name in rows if name in others and rows[name].shape == others[name].shape]
    return any(np.mean(rows[name] != others[name]) > _MOST_CHANGED for name in common)


def _some_rows(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """A row of the tensors outside of the layers and in two of them, except those in 4 bits."""
    layers = None, 0, checkpoint.config.num_hidden_layers - 1
    rows = {}
    for name in tensor_names(checkpoint.config):
        if name.layer in layers and not name.expert and checkpoint.packed(name) is None:
            rows[name.name] = np.empty((1, *name.shape[1:]), DTYPES["bfloat16"])
            checkpoint.read(name, rows[name.name], name.shape[0] // 2)
    return rows
