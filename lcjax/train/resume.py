"""Where to go on, and whether it is the same run."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcjax import lora
from lcjax.data import Data
from lcjax.errors import InputError
from lcjax.memory import fetched
from lcjax.model import Llama
from lcjax.train.arguments import TrainingArguments, flag
from lcjax.train.checkpoint import Checkpoints

# Arguments that change neither a step's arithmetic nor the order of the data, or that are compared by what they led to: the
# number of steps, the fingerprints of weights and data, the dtype of the weights.
_FREE_ARGUMENTS = {
    "output_dir", "resume_from_checkpoint", "save_steps", "save_total_limit", "eval_steps", "eval_batches", "logging_steps",
    "max_steps", "num_train_epochs", "model", "data", "documents", "data_weights", "dtype", "use_gradient_checkpointing",
    "attention", "skip_leak_check", "programs_dir",
}  # fmt: skip
# Where the files lie and how the step is scheduled may change between two sittings; the numbers do not.
_FREE_SETTINGS = {"name_or_path", "use_gradient_checkpointing", "attention", "generation_config"}
# What a finished run leaves.
_RESULTS = ("adapter", "model")


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """The checkpoint `step` in `directory`."""

    directory: Path
    step: int

    def __str__(self) -> str:
        return str(self.directory / str(self.step))


def find_resume_point(requested: str | None, output_dir: Path | None) -> ResumePoint | None:
    """The checkpoint that `--resume-from-checkpoint` means, or None for a fresh run.

    Args:
      requested: None, "latest", a checkpoint's folder, or the folder of a run.
      output_dir: of the run that goes on or begins; None where it gets a folder of its own.

    Raises:
      InputError: there is no such checkpoint; or going on would write over another run.
    """
    if output_dir is not None:
        _check_output_dir(output_dir)
    own = output_dir / "checkpoints" if output_dir else None
    newest = _newest(own) if own else None
    if requested is None:
        _refuse_to_overwrite(output_dir, newest)
        return None
    if requested != "latest":
        point = _named(Path(requested))
    elif own is None:
        raise InputError("--resume-from-checkpoint latest needs the --output-dir of the run to go on with")
    else:
        point = _newest_of(own, output_dir)
    if newest is not None and own is not None and (own.resolve(), newest) != (point.directory.resolve(), point.step):
        raise InputError(
            f"{output_dir} holds checkpoint {newest}, which going on from {point} would overwrite; give another --output-dir "
            "for the new run"
        )
    return point


def describe_run(model: Llama, data: Data, arguments: TrainingArguments, max_steps: int) -> dict[str, Any]:
    """What must be the same for a checkpoint to be this run's, and the arguments for the record; equals its JSON."""
    settings = {name: value for name, value in dataclasses.asdict(model.settings).items() if name not in _FREE_SETTINGS}
    return _as_json(
        {
            "arguments": dataclasses.asdict(arguments),
            "max_steps": max_steps,
            "model": dataclasses.asdict(model.config) | settings | {"dtype": str(model.dtype)},
            "weights": _fingerprint(model),
            "data": data.fingerprint(),
        }
    )


def refuse_other_run(saved: dict[str, Any], current: dict[str, Any], point: ResumePoint) -> None:
    """Raises InputError, naming the first difference, when a checkpoint is not of this model, data and arguments."""
    for path, before, now in _differences(saved, current, ()):
        match path:
            case ("arguments", name) if name in _FREE_ARGUMENTS:
                continue
            case ("execution", *_):
                continue
            case ("arguments", name):
                what = f"{flag(name)} was {before!r} and is {now!r}; give the same"
            case ("weights",):
                what = "the base weights were others; give the same --model"
            case ("data",):
                what = "the data were others; give the same --data files, unchanged"
            case ("max_steps",):
                what = (
                    f"it was to take {before} steps, not {now}, by which its learning rate falls; give the same number"
                )
            case _:
                what = f"{'.'.join(path)} was {before!r} and is {now!r}; give the same"
        raise InputError(f"checkpoint {point} is of another run: {what}, or start anew with another --output-dir")


def _check_output_dir(output_dir: Path) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"--output-dir {output_dir} is a file; name a folder")
    # orbax takes the first for a pattern and the second for a slash, and writes what it then does not find.
    if unfit := sorted(set("[\\") & set(str(output_dir.absolute()))):
        raise InputError(
            f"--output-dir {output_dir.absolute()} holds the character {unfit[0]}, where checkpoints cannot be read back; choose "
            "another"
        )


def _refuse_to_overwrite(output_dir: Path | None, newest: int | None) -> None:
    if newest is not None:
        raise InputError(
            f"{output_dir} holds a run with checkpoints; go on with --resume-from-checkpoint latest, or choose another "
            "--output-dir"
        )
    if output_dir is not None and (kept := [name for name in _RESULTS if (output_dir / name).exists()]):
        raise InputError(f"{output_dir} holds the {kept[0]} of a finished run; choose another --output-dir")


def _fingerprint(model: Llama) -> str:
    """32 hexadecimal digits that tell the base weights from others of the same shape, by one column of every matrix."""
    digest = hashlib.blake2b(digest_size=16)
    base, _ = lora.detach(model.params)
    for leaf in jax.tree.leaves(base):
        column = leaf if leaf.ndim == 1 else fetched(leaf)[..., 0]
        digest.update(np.asarray(column.astype(jnp.float32)).tobytes())
    return digest.hexdigest()


def _as_json(value: Any) -> Any:
    """Tuples to lists and paths to strings, so that the value equals what JSON gives back."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _differences(before: Any, now: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), (*path, key))
    elif before != now:
        yield path, before, now


def _newest(directory: Path) -> int | None:
    if not directory.is_dir():
        return None
    checkpoints = Checkpoints(directory)
    try:
        return checkpoints.latest()
    finally:
        checkpoints.close()


def _newest_of(directory: Path, run_directory: Path | None) -> ResumePoint:
    newest = _newest(directory)
    if newest is None:
        raise InputError(f"{run_directory} holds no checkpoint to go on with; start without --resume-from-checkpoint")
    return ResumePoint(directory, newest)


def _named(path: Path) -> ResumePoint:
    if not path.is_dir():
        raise InputError(
            f"--resume-from-checkpoint {path} does not exist; give a folder such as runs/x/checkpoints/100"
        )
    if not path.name.isdigit():
        inner = path if path.name == "checkpoints" else path / "checkpoints"
        return _newest_of(inner, path)
    return ResumePoint(path.parent, int(path.name))
