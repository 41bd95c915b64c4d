"""Where to go on, and whether it is the same run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lcjax.errors import InputError
from lcjax.train.checkpoint import Checkpoints

# Arguments that change neither a step's arithmetic nor the order of the data, or that are compared by what they led to: the
# number of steps, the fingerprints of weights and data.
_FREE = {
    "output_dir", "resume_from_checkpoint", "save_steps", "save_total_limit", "eval_steps", "eval_batches", "logging_steps",
    "max_steps", "num_train_epochs", "model", "data",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """The checkpoint `step` in `directory`."""

    directory: Path
    step: int


def find_resume_point(requested: str | None, output_dir: Path) -> ResumePoint | None:
    """The checkpoint that `--resume-from-checkpoint` means, or None for a fresh run.

    Raises:
      InputError: there is no such checkpoint; or a fresh run would write over the checkpoints of an old one.
    """
    own = output_dir / "checkpoints"
    newest = _newest(own)
    if requested is None:
        if newest is not None:
            raise InputError(
                f"{output_dir} holds a run with checkpoints; go on with --resume-from-checkpoint latest, or choose another "
                "--output-dir"
            )
        return None
    point = _newest_of(own, output_dir) if requested == "latest" else _named(Path(requested))
    if newest is not None and newest != point.step and point.directory.resolve() == own.resolve():
        raise InputError(
            f"{own / str(point.step)} is older than checkpoint {newest} beside it, which going on would overwrite; give another "
            "--output-dir for the new run"
        )
    return point


def refuse_other_run(saved: dict[str, Any], current: dict[str, Any], point: ResumePoint) -> None:
    """Raises InputError, naming the first difference, when a checkpoint is not of this model, data and arguments."""
    where = f"checkpoint {point.step} in {point.directory}"
    for path, before, now in _differences(saved, current, ()):
        if path[0] == "arguments" and path[1] in _FREE:
            continue
        if path == ("weights",):
            raise InputError(f"{where} was trained on other base weights; give the same --model, or start anew")
        if path == ("data",):
            raise InputError(f"{where} was trained on other data; give the same --data files, unchanged, or start anew")
        if path == ("max_steps",):
            raise InputError(
                f"{where} is of a run of {before} steps, not {now}: its learning-rate schedule would change; give the same "
                "number, or start anew"
            )
        name = ".".join(path[1:])
        raise InputError(
            f"{where} is of another run: {name} was {before!r} and is {now!r}; give the same, or start anew"
        )


def _differences(before: Any, now: Any, path: tuple[str, ...]):
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


def _newest_of(directory: Path, output_dir: Path) -> ResumePoint:
    newest = _newest(directory)
    if newest is None:
        raise InputError(f"{output_dir} holds no checkpoint to go on with; start without --resume-from-checkpoint")
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
