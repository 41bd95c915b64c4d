"""Whether a checkpoint belongs to this run: compared as early as each part is known; the first difference is named."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from lcjax.config.run_record import as_json
from lcjax.config.training import LEVEL_SCHEDULES, TrainingArguments
from lcjax.data import Data
from lcjax.errors import InputError
from lcjax.model import Llama, lora
from lcjax.optim.schedules import warmup_length
from lcjax.train.arguments import flag
from lcjax.train.checkpoints.checkpoint import FORMAT
from lcjax.train.checkpoints.fingerprint import fingerprint
from lcjax.train.checkpoints.resume import ResumePoint

Description = dict[str, Any]

# Arguments that are compared by what they led to: the number of steps, the fingerprints of weights and data, the dtype.
_COMPARED_BY_RESULT = {"max_steps", "num_train_epochs", "model", "data", "documents", "data_weights", "dtype"}
# In addition, those that change neither a step's arithmetic nor the order of the data.
_FREE_ARGUMENTS = _COMPARED_BY_RESULT | {
    "output_dir", "resume_from_checkpoint", "save_steps", "save_total_limit", "eval_steps", "eval_batches", "logging_steps",
    "use_gradient_checkpointing", "attention", "skip_leak_check", "programs_dir",
}  # fmt: skip
# Where the files lie and how the step is scheduled may change between two sessions; the numbers do not.
_FREE_SETTINGS = {"name_or_path", "use_gradient_checkpointing", "attention", "generation_config"}
# Fields of LlamaConfig that checkpoints of earlier versions lack; the weights' names and bytes tell the families apart.
_ADDED_FIELDS = ("model_type", "own_values")


def describe_arguments(arguments: TrainingArguments) -> Description:
    """The part of a checkpoint's description that is known before the model is loaded; equals its JSON.

    Paths in the arguments are relative to the working directory. It is not compared.
    """
    described = as_json(dataclasses.asdict(arguments))
    return {"format": FORMAT, "arguments": described, "working_directory": os.getcwd()}


def describe_model(model: Llama) -> Description:
    """Config, settings and every byte of the base weights."""
    settings = {name: value for name, value in dataclasses.asdict(model.settings).items() if name not in _FREE_SETTINGS}
    described = as_json(dataclasses.asdict(model.config) | settings | {"dtype": str(model.dtype)})
    base, _ = lora.detach(model.params)
    return {"model": described, "weights": fingerprint(base)}


def describe_data(data: Data, max_steps: int) -> Description:
    """The data and the number of steps that they led to."""
    return {"data": data.fingerprint(), "max_steps": max_steps}


def known_steps(saved: Description, arguments: TrainingArguments) -> int | None:
    """The number of optimizer steps, where it is known before the data are read: given, or from the same epochs as before."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    before = saved["arguments"]
    same_epochs = before["max_steps"] == -1 and before["num_train_epochs"] == arguments.num_train_epochs
    return saved["max_steps"] if same_epochs else None


def is_same_command(saved: Description, arguments: TrainingArguments) -> bool:
    """Whether no argument that has a part in the numbers differs, so that the data and weights need not be compared."""
    now, named = as_json(dataclasses.asdict(arguments)), _FREE_ARGUMENTS - _COMPARED_BY_RESULT
    return all(saved["arguments"].get(name) == now[name] for name in now.keys() - named)


def refuse_other_run(saved: Description, current: Description, point: ResumePoint, date_wanted: str = "") -> None:
    """Raises InputError, naming the first difference, when a checkpoint is not of the run that `current` describes.

    `current` may be a part of a description: what is not in it is not compared, and so with single arguments. `date_wanted` is
    added to the message about different data.
    """
    if "model" in saved and "model" in current:
        saved = saved | {"model": {name: current["model"][name] for name in _ADDED_FIELDS} | saved["model"]}
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
                case ("weights",):
                    what = "the base weights were different; give the same --model"
                case ("data",):
                    what = f"the data were different; give the same --data files, unchanged{date_wanted}"
                case _:
                    what = f"{'.'.join(path)} was {before!r} and is {now!r}; give the same"
            raise _other(point, what)


def refuse_other_length(saved: Description, arguments: TrainingArguments, max_steps: int, point: ResumePoint) -> None:
    """Raises InputError where a run of `max_steps` would have had other learning rates than the saved one up to `point`."""
    before = saved["max_steps"]
    if max_steps == before:
        return
    if max_steps < point.step:
        raise _other(
            point, f"it has taken {point.step} steps, and --max-steps is {max_steps} now; give as many or more"
        )
    kind = arguments.lr_scheduler_type
    rate_falls = f"it was to take {before} steps, not {max_steps}, by which its learning rate falls ({kind})"
    if kind not in LEVEL_SCHEDULES:
        levels = " and ".join(LEVEL_SCHEDULES)
        raise _other(point, f"{rate_falls}; give the same number (only {levels} runs can be extended)")
    warmups = [
        warmup_length(kind, steps, arguments.warmup_steps, arguments.warmup_ratio) for steps in (before, max_steps)
    ]
    if warmups[0] != warmups[1]:
        raise _other(
            point,
            f"it was to take {before} steps, not {max_steps}, by which --warmup-ratio {arguments.warmup_ratio} makes its "
            f"warm-up {warmups[1]} steps instead of {warmups[0]}; give the same number",
        )


def _other(point: ResumePoint, what: str) -> InputError:
    return InputError(f"checkpoint {point} is of another run: {what}, or start again with another --output-dir")


def _differences(before: Any, now: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), (*path, key))
    elif before != now:
        yield path, before, now
