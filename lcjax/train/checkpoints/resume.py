"""Finds the checkpoint that a run's arguments select, and verifies all its files."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from lcjax.errors import InputError
from lcjax.train.checkpoints.checkpoint import Checkpoints

# The folders of a finished run's results.
RESULTS = ("adapter", "model")
_RESUME = "--resume-from-checkpoint"


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
      output_dir: that of the resumed or new run; None if it gets a new folder.

    Raises:
      InputError: there is no such checkpoint, or resuming would overwrite another run.
    """
    if output_dir is not None:
        _check_output_dir(output_dir)
    own = output_dir / "checkpoints" if output_dir else None
    newest = Checkpoints(own).latest() if own else None
    if requested is None:
        _refuse_to_overwrite(output_dir, newest)
        return None
    if requested != "latest":
        point = named_point(Path(requested), _RESUME)
    elif own is None:
        raise InputError("--resume-from-checkpoint latest needs the --output-dir of the run to resume")
    else:
        point = _newest_of(own, output_dir, _RESUME)
    if own is not None and newest is not None:
        _refuse_to_overwrite_newer(point, own, newest, output_dir)
    return point


def named_point(path: Path, flag: str) -> ResumePoint:
    """The checkpoint of a path: a checkpoint's folder, or the newest one of a run's folder.

    Raises:
      InputError: there is no folder, or no checkpoint in it; `flag` is the flag that named it.
    """
    if not path.is_dir():
        raise InputError(f"{flag} {path} does not exist; give a folder such as runs/x/checkpoints/100")
    if path.name.isdigit() and not (path / "checkpoints").is_dir():
        return ResumePoint(path.parent, int(path.name))
    return _newest_of(path if path.name == "checkpoints" else path / "checkpoints", path, flag)


def refuse_damage(point: ResumePoint, flag: str = _RESUME) -> None:
    """Reads all files; raises InputError, with the newest undamaged checkpoint, on damage.

    `flag` is the flag that named the checkpoint.
    """
    checkpoints = Checkpoints(point.directory)
    if point.step not in checkpoints.steps():
        raise InputError(f"checkpoint {point} does not exist; existing checkpoints: {checkpoints.steps() or 'none'}")
    damage = checkpoints.damage(point.step)
    if damage is None:
        return
    sound = checkpoints.newest_undamaged()
    remedy = "no undamaged one is left; start again with another --output-dir"
    if sound is not None:
        path = shlex.quote(str(point.directory / str(sound)))
        remedy = f"the newest undamaged one is {sound}: {flag} {path}"
    raise InputError(f"checkpoint {point.step} in {point.directory.parent} is damaged ({damage}); {remedy}")


def set_newer_aside(point: ResumePoint) -> list[str]:
    """Renames the damaged checkpoints after the one to resume from; returns a line for each."""
    checkpoints = Checkpoints(point.directory)
    newer = [step for step in checkpoints.steps() if step > point.step]
    return [f"checkpoint {step} is damaged; it is now {checkpoints.set_aside(step)}" for step in newer]


def _check_output_dir(output_dir: Path) -> None:
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"--output-dir {output_dir} is a file; give a folder")
    # orbax treats the first as a pattern and the second as a slash, and cannot find what it wrote.
    if unfit := sorted(set("[\\") & set(str(output_dir.absolute()))):
        raise InputError(
            f"--output-dir {output_dir.absolute()} has the character {unfit[0]}, with which "
            "checkpoints cannot be read back; choose another"
        )


def _refuse_to_overwrite(output_dir: Path | None, newest: int | None) -> None:
    if newest is not None:
        raise InputError(
            f"{output_dir} has a run with checkpoints; resume it with --resume-from-checkpoint "
            "latest, or choose another --output-dir"
        )
    if output_dir is not None and (found := [name for name in RESULTS if (output_dir / name).exists()]):
        raise InputError(f"{output_dir} has the {found[0]} of a finished run; choose another --output-dir")


def _refuse_to_overwrite_newer(point: ResumePoint, own: Path, newest: int, output_dir: Path | None) -> None:
    """Allows resuming from the run's newest checkpoint, or from one after which all are damaged."""
    checkpoints, occupied = Checkpoints(own), newest
    if own.resolve() == point.directory.resolve():
        later = [step for step in checkpoints.steps() if step > point.step]
        sound = [step for step in later if checkpoints.damage(step) is None]
        if not sound:
            return
        occupied = sound[-1]
    raise InputError(
        f"{output_dir} has checkpoint {occupied}, which resuming from {point} would overwrite; "
        "give another --output-dir for the new run"
    )


def _newest_of(directory: Path, run_directory: Path | None, flag: str) -> ResumePoint:
    newest = Checkpoints(directory).latest()
    if newest is None:
        verb = "resume" if flag == _RESUME else "start"
        raise InputError(f"{run_directory} has no checkpoint to {verb} from; start without {flag}")
    return ResumePoint(directory, newest)
