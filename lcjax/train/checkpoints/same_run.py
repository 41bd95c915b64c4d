"""Decides whether a checkpoint belongs to this run, and names the first difference.

Each part is compared as soon as it is known.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from lcjax.config import LlamaConfig
from lcjax.config.run_record import as_json
from lcjax.config.training import METRICS, TrainingArguments
from lcjax.data import Data
from lcjax.errors import InputError
from lcjax.model import Llama, lora
from lcjax.train.arguments import flag
from lcjax.train.checkpoints.checkpoint import FORMAT
from lcjax.train.checkpoints.fingerprint import fingerprint
from lcjax.train.checkpoints.resume import ResumePoint

Description = dict[str, Any]

# Arguments that are compared by their results: the number of steps, the fingerprints of weights and
# data, the dtype.
_COMPARED_BY_RESULT = {
    "max_steps", "num_train_epochs", "model", "data", "documents", "columns", "data_weights", "dtype",
}  # fmt: skip
# In addition, those that change neither a step's arithmetic nor the order of the data.
_FREE_ARGUMENTS = _COMPARED_BY_RESULT | {
    "output_dir", "resume_from_checkpoint", "save_steps", "save_total_limit", "eval_steps",
    "eval_batches", "logging_steps", "use_gradient_checkpointing", "attention", "skip_leak_check",
    "programs_dir", "context_parallel_size", "data_parallel_size", "ulysses_degree", "ring_degree",
    "shard_weights", "coordinator", "num_processes", "process_id", "load_best_model_at_end",
    "metric_for_best_model", "early_stopping_patience", "early_stopping_threshold",
    "sample_prompts", "sample_steps", "sample_tokens", "report_to", "config", "adapter",
    "start_from", "optimizer_state",
}  # fmt: skip
# The location of files and the scheduling of a step may change between two sessions; the numbers do
# not.
_FREE_SETTINGS = {
    "name_or_path", "adapter", "execution", "use_gradient_checkpointing", "attention", "generation_config",
}  # fmt: skip
# Fields of LlamaConfig that checkpoints of earlier versions lack; the weights' names and bytes
# distinguish the families.
_ADDED_FIELDS = ("model_type", "own_values")
# A difference of these is named before others, which often follow from it.
_CONFIG_FIELDS = ("model_type", *(field.name for field in dataclasses.fields(LlamaConfig)))


def describe_arguments(arguments: TrainingArguments) -> Description:
    """The part of a checkpoint's description known before the model is loaded, as in its JSON.

    Paths in the arguments are relative to the working directory. It is not compared.
    """
    described = as_json(dataclasses.asdict(arguments))
    return {"format": FORMAT, "arguments": described, "working_directory": os.getcwd()}


def describe_model(model: Llama) -> Description:
    """Config, settings and every byte of the base weights."""
    settings = dataclasses.asdict(model.settings)
    settings |= settings.pop("requested")
    compared = {name: value for name, value in settings.items() if name not in _FREE_SETTINGS}
    described = as_json(dataclasses.asdict(model.config) | compared | {"dtype": str(model.dtype)})
    base, _ = lora.detach(model.params)
    return {"model": described, "weights": fingerprint(base)}


def describe_config(config: LlamaConfig) -> Description:
    """The part of `describe_model` that is known before the weights are read."""
    return {"model": as_json(dataclasses.asdict(config))}


def describe_data(data: Data, max_steps: int) -> Description:
    """The data and the resulting number of steps."""
    return {"data": data.fingerprint(), "max_steps": max_steps}


def known_steps(saved: Description, arguments: TrainingArguments) -> int | None:
    """The number of optimizer steps, if it is known before the data is read.

    It is known if it is given, or if the number of epochs is the same as before.
    """
    if arguments.max_steps > 0:
        return arguments.max_steps
    before = saved["arguments"]
    same_epochs = before["max_steps"] == -1 and before["num_train_epochs"] == arguments.num_train_epochs
    return saved["max_steps"] if same_epochs else None


def is_same_command(saved: Description, arguments: TrainingArguments) -> bool:
    """Whether no argument that affects the numbers differs; data and weights need no check."""
    now, named = as_json(dataclasses.asdict(arguments)), _FREE_ARGUMENTS - _COMPARED_BY_RESULT
    return all(saved["arguments"].get(name) == now[name] for name in now.keys() - named)


def is_same_result(saved: Description, arguments: TrainingArguments) -> bool:
    """Whether the weights that a finished run has saved are of the step that is now asked for."""
    before, now = saved["arguments"], as_json(dataclasses.asdict(arguments))
    usual = {"load_best_model_at_end": False, "metric_for_best_model": METRICS[0]}
    return all(before.get(name, value) == now[name] for name, value in usual.items())


def refuse_other_run(saved: Description, current: Description, point: ResumePoint, date_wanted: str = "") -> None:
    """Raises InputError if a checkpoint is not of the run `current`; names the first difference.

    `current` may be a part of a description: missing parts and missing arguments are not compared,
    and of the model only the config if it has no more.
    `date_wanted` is added to the message about different data.
    """
    if "model" in saved and "model" in current:
        before = {name: current["model"][name] for name in _ADDED_FIELDS} | saved["model"]
        if current["model"].keys() <= set(_CONFIG_FIELDS):
            before = {name: value for name, value in before.items() if name in _CONFIG_FIELDS}
        saved = saved | {"model": before}
    shared = saved["arguments"].keys() & current.get("arguments", {}).keys() - _FREE_ARGUMENTS
    for part in ("arguments", "model", "weights", "data"):
        if part not in current:
            continue
        for path, before, now in _differences(saved.get(part), current[part], (part,)):
            match path:
                case ("arguments", name) if name not in shared:
                    continue
                case ("arguments", name):
                    what = f"{flag(name)} was {before!r} and is {now!r}; give the same"
                case ("model", "dtype"):
                    what = f"--dtype was {before!r} and is {now!r}; give the same"
                case ("model", name, *below) if name in _CONFIG_FIELDS:
                    key = ".".join((name, *below))
                    what = f"the model's {key} was {before!r} and is {now!r}; give the same --model"
                case ("weights",):
                    what = "the base weights were different; give the same --model"
                case ("data",):
                    what = f"the data was different; give the same --data files, unchanged{date_wanted}"
                case _:
                    what = f"{'.'.join(path)} was {before!r} and is {now!r}; give the same"
            raise _other(point, what)


def _other(point: ResumePoint, what: str) -> InputError:
    return InputError(f"checkpoint {point} is of another run: {what}, or start again with another --output-dir")


def _place(key: str) -> tuple[int, str]:
    """The order in which differences are named."""
    return (_CONFIG_FIELDS.index(key) if key in _CONFIG_FIELDS else len(_CONFIG_FIELDS)), key


def _differences(before: Any, now: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys(), key=_place):
            yield from _differences(before.get(key), now.get(key), (*path, key))
    elif before != now:
        yield path, before, now
