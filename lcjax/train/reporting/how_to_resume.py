"""A command or a call that resumes a run that a signal has stopped."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from lcjax.config.training import TrainingArguments
from lcjax.parallel.processes import is_alone
from lcjax.train.arguments import RunArguments


def how_to_resume(arguments: TrainingArguments, data: Sequence[str | Path], output_dir: Path, step: int) -> str:
    """A shell command for a run of the command line, otherwise a call of `lcjax.train`.

    The call uses the caller's `model` and `tokenizer`.

    Args:
      step: the last saved step; 0 if there is none, and the run starts over.
    """
    if not (isinstance(arguments, RunArguments) and arguments.model):
        return _call(arguments, data, output_dir, step)
    if not is_alone():
        latest = ", with --resume-from-checkpoint latest" if step else ""
        return f"the same command in every process{latest}"
    if not step:
        return "the same command"
    programs = f" --programs-dir {shlex.quote(str(arguments.programs_dir))}" if arguments.programs_dir else ""
    return f"lcjax train --output-dir {shlex.quote(str(output_dir))} --resume-from-checkpoint latest{programs}"


def _call(arguments: TrainingArguments, data: Sequence[str | Path], output_dir: Path, step: int) -> str:
    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(TrainingArguments)}
    given = {name: value for name, value in values.items() if value != getattr(TrainingArguments(), name)}
    given |= {name: str(given[name]) for name in ("programs_dir", "sample_prompts", "start_from") if name in given}
    given |= {"output_dir": str(output_dir)}
    given.pop("resume_from_checkpoint", None)
    if step:
        given["resume_from_checkpoint"] = "latest"
    words = [repr([str(path) for path in data]), *(f"{name}={value!r}" for name, value in given.items())]
    return f"lcjax.train(model, tokenizer, {', '.join(words)})"
