"""The output directory of a process: locked, checked, with the checkpoint to resume from."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from lcjax.cli.terminal import say
from lcjax.config import LlamaConfig
from lcjax.config.run_record import RECORD, now
from lcjax.config.training import TrainingArguments
from lcjax.data import Data
from lcjax.errors import InputError
from lcjax.model import Llama
from lcjax.parallel.processes import first_before_others, from_first, writes_files
from lcjax.report.records import parse_rows
from lcjax.train.checkpoints.checkpoint import Checkpoints, unused_name
from lcjax.train.checkpoints.lock import locked
from lcjax.train.checkpoints.other_length import line_about_rates, refuse_too_few_steps
from lcjax.train.checkpoints.resume import RESULTS, ResumePoint, find_resume_point, refuse_damage, set_newer_aside
from lcjax.train.checkpoints.same_run import (
    describe_arguments,
    describe_config,
    describe_data,
    is_same_command,
    is_same_result,
    known_steps,
    refuse_other_run,
)
from lcjax.train.disk import writing
from lcjax.train.reporting.metrics import RECORDS, damage_of_record
from lcjax.train.selection.best import stops_early
from lcjax.train.start.point import START_FROM, Start, find_start

_FILES = (*RECORDS, "samples.jsonl", "report.html", "loss.png", RECORD)
_FOLDERS = ("checkpoints", "tensorboard", *RESULTS)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """An output directory that no other run uses.

    `started` is when the run was first started. For a resumed run, `resume` is the checkpoint,
    `saved` its description of the run, and `records` its copies of metrics.jsonl and
    evaluation.jsonl. `start` is the checkpoint from which a new run starts. All files are verified.
    """

    path: Path
    started: datetime.datetime
    resume: ResumePoint | None = None
    saved: dict[str, Any] = dataclasses.field(default_factory=dict)
    records: dict[str, bytes] = dataclasses.field(default_factory=lambda: dict.fromkeys(RECORDS, b""))
    start: Start | None = None

    @property
    def first_step(self) -> int:
        """The number of steps taken."""
        return self.resume.step if self.resume else 0

    @property
    def resumes_here(self) -> bool:
        """Whether the checkpoint is in this folder, not in another run's."""
        return self.resume is not None and self.resume.directory.resolve() == (self.path / "checkpoints").resolve()

    def results(self) -> Path | None:
        """The adapter or the weights that a finished run has saved here."""
        return next((self.path / name for name in RESULTS if (self.path / name).exists()), None)

    def stopped_early(self, arguments: TrainingArguments) -> bool:
        """Whether a run with these arguments takes no further step, because of its evaluations."""
        return stops_early(parse_rows(self.records["evaluation.jsonl"]), arguments)

    def is_finished(self, max_steps: int | None, arguments: TrainingArguments) -> bool:
        """Whether a run of this many steps has nothing left to do and all its results are here."""
        left = self.results() is not None and (self.path / "loss.png").exists()
        return (
            self.resumes_here
            and left
            and self.saved["max_steps"] == max_steps
            and (self.first_step == max_steps or self.stopped_early(arguments))
            and is_same_result(self.saved, arguments)
            and all(
                (self.path / name).is_file() and (self.path / name).read_bytes() == self.records[name]
                for name in RECORDS
            )
        )

    def has_nothing_to_do(self, arguments: TrainingArguments) -> bool:
        """`is_finished`, as far as it can be decided without the model and the data."""
        return (
            self.resume is not None
            and is_same_command(self.saved, arguments)
            and self.is_finished(known_steps(self.saved, arguments), arguments)
        )

    def refuse_other_run(self, description: dict[str, Any]) -> None:
        """Raises InputError if the resumed run differs from what is known so far of this one."""
        if self.resume is not None:
            refuse_other_run(self.saved, description, self.resume)

    def say_how_it_starts(self, model: Llama, weights: str, console: Console) -> None:
        """Prints how the model of a new run differs from that of the checkpoint it starts from.

        Args: as of `Start.compared`, and the console.

        Raises:
          InputError: the weights of the checkpoint are not those that the run trains.
        """
        for line in self.start.compared(model, weights) if self.start else ():
            say(console, line)

    def refuse_other_config(self, config: LlamaConfig) -> None:
        """`refuse_other_run` before the model's weights are read.

        `config` is the model's, with the RoPE of this run.
        """
        self.refuse_other_run(describe_config(config))

    def refuse_other_data(self, data: Data, arguments: TrainingArguments) -> None:
        """Raises InputError if the resumed run had other data, or has taken more steps."""
        if self.resume is not None:
            max_steps = arguments.number_of_steps(len(data.train_plan))
            refuse_other_run(self.saved, describe_data(data, max_steps), self.resume, self._date_wanted(data))
            refuse_too_few_steps(max_steps, self.resume)

    def _date_wanted(self, data: Data) -> str:
        """The hint for data that a program loaded on another day than the run's.

        A chat template may have written that date.
        """
        if data.date is None or data.date.astimezone() == self.started:
            return ""
        call = f"load_corpus(..., date=datetime.datetime.fromisoformat({self.started.isoformat()!r}))"
        return f", with the run's date if the chat template writes it: {call}"

    def prepare_to_resume(self, max_steps: int, arguments: TrainingArguments) -> list[str]:
        """Renames what resuming to `max_steps` would overwrite, and lost or changed records.

        Returns a line for each, and one about the learning rate if it is not that of the plan.

        Raises:
          InputError: the files cannot be written.
        """
        if self.resume is None:
            return []
        line = line_about_rates(self.saved["max_steps"], max_steps, arguments, self.resume)
        lines = [] if line is None else [line]
        if not self.resumes_here:
            return lines
        lines += set_newer_aside(self.resume)
        results = self.results()
        if results is not None and self.first_step < max_steps:
            ended = self.first_step if self._had_stopped_early() else self.saved["max_steps"]
            target = unused_name(results.with_name(f"{results.name}.step-{ended}"))
            with writing(target):
                results.rename(target)
            lines.append(f"the {results.name} of step {ended} is now {target}")
        return lines + [line for name in RECORDS for line in self._restore(name)]

    def _had_stopped_early(self) -> bool:
        """Whether the saved run had stopped at its checkpoint, by the arguments that it had."""
        names = {field.name for field in dataclasses.fields(TrainingArguments)}
        before = {name: value for name, value in self.saved["arguments"].items() if name in names}
        return self.stopped_early(TrainingArguments(**before))

    def _restore(self, name: str) -> list[str]:
        """Renames a damaged record; the file itself is written when it is opened."""
        path, content = self.path / name, self.records[name]
        damage = damage_of_record(path, content)
        if damage is None:
            return []
        line = f"{path} {damage}; it is restored from checkpoint {self.first_step}"
        if path.exists():
            target = unused_name(path.with_name(f"{name}.damaged"))
            with writing(target):
                path.rename(target)
            line += f", and its former content is in {target.name}"
        return [line]


@contextlib.contextmanager
def open_run_folder(output_dir: Path, arguments: TrainingArguments) -> Iterator[RunFolder]:
    """Locks the output directory, creates it if needed, and checks what needs no model.

    Until the context is left no other run can open it. A folder that was created and stayed empty
    is removed. If the run has several processes, the first one does this, and the others read.

    Raises:
      InputError: another run uses it; a fresh run would overwrite one; the checkpoint to resume
        from does not exist, is damaged or has other arguments; a file is in the place of a folder,
        or the reverse; or it cannot be written.
    """
    with contextlib.ExitStack() as opened:

        def open_() -> RunFolder:
            if not writes_files():
                _require_writable(output_dir)
                return _open(output_dir, arguments)
            return opened.enter_context(_open_alone(output_dir, arguments))

        folder = first_before_others(open_)
        started = datetime.datetime.fromisoformat(from_first(folder.started.isoformat()))
        yield dataclasses.replace(folder, started=started)


@contextlib.contextmanager
def _open_alone(output_dir: Path, arguments: TrainingArguments) -> Iterator[RunFolder]:
    """`open_run_folder` for the only process, or the first one."""
    made: list[Path] = []
    with contextlib.ExitStack() as removal:
        removal.callback(_remove_empty, made)
        try:
            made += [folder for folder in (output_dir, *output_dir.parents) if not folder.exists()]
            if made:
                # an invalid request must not create a folder
                find_resume_point(arguments.resume_from_checkpoint, output_dir)
                # Another run may create it at the same moment. Then the lock decides.
                output_dir.mkdir(parents=True, exist_ok=True)
            elif not output_dir.is_dir():
                raise InputError(f"--output-dir {output_dir} is a file; give a folder")
        except OSError as error:
            raise InputError(
                f"--output-dir {output_dir} cannot be created ({error.strerror}); choose another"
            ) from None
        with locked(output_dir):
            yield _open(output_dir, arguments)


def _require_writable(output_dir: Path) -> None:
    """Checks the folder in a process that will write its part of the checkpoints there."""
    try:
        tempfile.TemporaryFile(dir=output_dir).close()
    except OSError as error:
        raise InputError(
            f"--output-dir {output_dir.absolute()} cannot be written by every process ({error.strerror}); give a "
            "folder on a disk that all of them share"
        ) from None


def _remove_empty(folders: list[Path]) -> None:
    """Removes empty folders, innermost first, up to one that is not empty.

    A folder that could not be created is skipped.
    """
    for folder in folders:
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
                return


def _open(output_dir: Path, arguments: TrainingArguments) -> RunFolder:
    point = find_resume_point(arguments.resume_from_checkpoint, output_dir)
    _check_kinds(output_dir)
    if point is None:
        if (start := find_start(arguments)) is not None:
            refuse_damage(start.point, START_FROM)
        return RunFolder(output_dir, now(), start=start)
    refuse_damage(point)
    checkpoints = Checkpoints(point.directory)
    saved = checkpoints.run(point.step)
    started = datetime.datetime.fromisoformat(saved["started"])
    refuse_other_run(saved, describe_arguments(arguments), point)
    steps = known_steps(saved, arguments)
    if steps is not None:
        refuse_too_few_steps(steps, point)
    return RunFolder(output_dir, started, point, saved, checkpoints.records(point.step, RECORDS))


def _check_kinds(output_dir: Path) -> None:
    for name in _FILES:
        if (output_dir / name).is_dir():
            raise InputError(
                f"{output_dir / name} is a folder, where a run writes a file; move it, or choose another --output-dir"
            )
    for name in _FOLDERS:
        if (output_dir / name).exists() and not (output_dir / name).is_dir():
            raise InputError(
                f"{output_dir / name} is a file, where a run makes a folder; move it, or choose another --output-dir"
            )
