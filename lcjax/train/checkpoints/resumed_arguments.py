"""The arguments of a run that is resumed on the command line."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from lcjax.config.run_record import as_json, path_from
from lcjax.errors import InputError
from lcjax.train.arguments import RunArguments
from lcjax.train.checkpoints.checkpoint import Checkpoints
from lcjax.train.checkpoints.resume import ResumePoint, find_resume_point, refuse_damage
from lcjax.train.checkpoints.same_run import refuse_other_run

# Optional arguments that are a path.
_PATHS = ("sample_prompts", "adapter", "start_from")


def arguments_of_resumed_run(given: RunArguments) -> RunArguments:
    """The run's original arguments, overridden by the given flags.

    Relative paths are resolved against the run's working directory.

    Raises:
      InputError: there is no such run, it was not started by the command, or its checkpoint is
        damaged.
    """
    point, output_dir = _resume_point(given)
    requested = given.resume_from_checkpoint
    try:
        description = Checkpoints(point.directory).run(point.step)
        saved = description["arguments"]
        if "model" not in saved:
            raise InputError(f"{point} was written by lcjax.train() in a program; resume from that program")
        saved |= {"output_dir": output_dir, "resume_from_checkpoint": requested, "config": given.config}
        # machine code is never loaded from a folder named in a file
        saved.pop("programs_dir", None)
        # the processes may be others now
        for name in ("coordinator", "num_processes", "process_id"):
            saved.pop(name, None)
        saved |= {
            name: tuple(saved[name])
            for name in ("data", "columns", "data_weights", "target_modules", "report_to")
            if name in saved
        }
        if "working_directory" in description:
            there = functools.partial(path_from, description["working_directory"])
            saved |= {"model": there(saved["model"]), "data": tuple(map(there, saved["data"]))}
            saved |= {name: there(saved[name]) for name in _PATHS if saved.get(name)}
        known = {field.name for field in dataclasses.fields(RunArguments)}
        return RunArguments(**{name: value for name, value in saved.items() if name in known})
    except (InputError, TypeError, ValueError, KeyError):
        refuse_damage(point)  # a better message, if damage is the cause
        raise


def refuse_changed_flags(given: RunArguments) -> None:
    """Raises InputError for a given flag that no run may change when it is resumed.

    A changed flag may contradict a value of the run. A message about both would blame one that was
    not given.
    """
    point, _ = _resume_point(given)
    usual = as_json(dataclasses.asdict(RunArguments()))
    changed = {name: value for name, value in as_json(dataclasses.asdict(given)).items() if value != usual[name]}
    refuse_other_run(Checkpoints(point.directory).run(point.step), {"arguments": changed}, point)


def _resume_point(given: RunArguments) -> tuple[ResumePoint, Path | None]:
    """The checkpoint to resume from, and the run's folder, if the flags name it.

    Raises:
      InputError: there is no such checkpoint.
    """
    output_dir = given.output_dir
    if output_dir is None and given.resume_from_checkpoint != "latest":
        output_dir = _run_directory(Path(str(given.resume_from_checkpoint)))
    point = find_resume_point(given.resume_from_checkpoint, output_dir)
    assert point is not None
    return point, output_dir


def _run_directory(checkpoint: Path) -> Path:
    """The run's folder, from runs/x, runs/x/checkpoints or runs/x/checkpoints/100."""
    if checkpoint.name.isdigit():
        checkpoint = checkpoint.parent
    return checkpoint.parent if checkpoint.name == "checkpoints" else checkpoint
