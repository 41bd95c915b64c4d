"""The training run: from batches to checkpoints and an adapter, exactly resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lcjax.cli.native_log import NativeLog
from lcjax.cli.terminal import say
from lcjax.config.training import TrainingArguments
from lcjax.data import Data
from lcjax.model import Llama
from lcjax.parallel.processes import any_of, only_first, together, writes_files
from lcjax.report.page import PAGE, write_report
from lcjax.report.records import Best
from lcjax.train.checkpoints.checkpoint import Checkpoints
from lcjax.train.checkpoints.folder import RunFolder, open_run_folder
from lcjax.train.checkpoints.same_run import describe_arguments, describe_data, describe_model
from lcjax.train.compiled.execution import SavedExecution
from lcjax.train.data import load_run_data
from lcjax.train.disk import writing
from lcjax.train.divergence import TrainingDiverged
from lcjax.train.interrupt import StopRequest
from lcjax.train.outcome import losses_before_and_after, save_results, say_finished, say_results, trained_model
from lcjax.train.reporting.card import card_figures
from lcjax.train.reporting.how_to_resume import how_to_resume
from lcjax.train.reporting.measuring import Meter
from lcjax.train.reporting.metrics import RunLog
from lcjax.train.reporting.picture import run_title
from lcjax.train.reporting.progress import TrainingProgress
from lcjax.train.reporting.resolved import resolved_arguments
from lcjax.train.reporting.run_record import write_run_record
from lcjax.train.reporting.trackers import check_trackers
from lcjax.train.result import TrainingResult, default_output_dir
from lcjax.train.running.computation import Computation
from lcjax.train.running.held_out import NotFinite, held_out_loss
from lcjax.train.sampling.samples import Samples, check_samples
from lcjax.train.selection.best import require_held_out
from lcjax.train.selection.keeping import Selection
from lcjax.train.start.record import line_about_start, origin_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def train(
    model: Llama,
    tokenizer: PreTrainedTokenizerFast,
    data: str | Path | Sequence[str | Path] | Data,
    arguments: TrainingArguments | None = None,
    *,
    console: Console | None = None,
    stop: StopRequest | None = None,
    native_log: NativeLog | None = None,
    folder: RunFolder | None = None,
    **overrides: Any,
) -> TrainingResult:
    """Fine-tunes the adapter of `model`, or every weight if it has none, on documents.

    Args:
      model: from `lcjax.get_peft_model` or `lcjax.from_pretrained`; the run does not change it.
      tokenizer: the model's.
      data: paths, see `lcjax.data.read_sources`; or the result of `lcjax.data.load_corpus`.
      arguments: or fields of `TrainingArguments` by keyword, e.g. `learning_rate=1e-4`.
      console: for progress; standard error if None.
      stop: if its `requested` is set the run saves and returns; by default SIGTERM and SIGINT do.
      native_log: moved to xla.log in the output directory; None leaves it on the terminal.
      folder: the output directory, if the caller has opened it; opened here by default.

    Returns:
      a `TrainingResult`; its output_dir contains adapter/ (or model/), metrics.jsonl,
      evaluation.jsonl, loss.png, tensorboard/ and checkpoints/.

    Raises:
      InputError: the data, an argument or the output directory is invalid, or the disk is full.
      TrainingDiverged: the loss is no longer finite.
      PackingLeak: a packed document's logits depend on another document.
      KeyboardInterrupt: a signal came before the first step.
    """
    arguments = dataclasses.replace(arguments or TrainingArguments(), **overrides)
    with contextlib.ExitStack() as resources:
        stop = stop or resources.enter_context(StopRequest())
        if folder is None:
            output_dir = Path(arguments.output_dir or default_output_dir(model.settings.name_or_path))
            folder = resources.enter_context(open_run_folder(output_dir, arguments))
        run = _Run(
            model, tokenizer, data, arguments, console or Console(stderr=True), stop, native_log, folder, resources
        )
        run.open(resources)
        return run.execute()


class _Run:
    """One run: `__init__` prepares the computation, `open` the files; `execute` trains."""

    def __init__(self, model, tokenizer, data, arguments, console, stop, native_log, folder, resources):
        self.model: Llama = model
        self.tokenizer = tokenizer
        self.arguments: TrainingArguments = arguments
        self.console: Console = console
        self.stop: StopRequest = stop
        self.native_log: NativeLog | None = native_log
        self.folder: RunFolder = folder
        self.output_dir, self.start = folder.path, folder.first_step
        check_trackers(arguments)
        check_samples(arguments, tokenizer, model.settings.max_seq_length)
        self.description = describe_arguments(arguments) | describe_model(model)
        folder.refuse_other_run(self.description)
        self.origin = origin_of(model, folder)
        folder.say_how_it_starts(model, self.description["weights"], console)
        if not isinstance(data, Data):
            data = load_run_data(data, tokenizer, model.settings.max_seq_length, arguments, folder.started, console)
        data.check_fit(model.config.vocab_size, model.settings.max_seq_length)
        require_held_out(data, arguments)
        self.data: Data = data
        folder.refuse_other_data(data, arguments)
        self.started = folder.started if folder.resume or data.date is None else data.date.astimezone()
        self.title = run_title(model.settings, data.paths)
        self.max_steps = arguments.number_of_steps(len(data.train_plan))
        self.description |= describe_data(data, self.max_steps)
        self.description |= {"started": self.started.isoformat(), "origin": self.origin}
        if "checkpoint" in self.origin and folder.resume is None:
            say(console, line_about_start(self.origin))
        self.computation = Computation(
            model,
            data,
            arguments,
            self.max_steps,
            SavedExecution.of_json(folder.saved.get("execution")),
            folder.start,
            self.origin.get("optimizer_steps", 0),
            console=console,
            move_native_log=self._move_native_log,
            resources=resources,
        )

    def _write_record(self) -> None:
        arguments = dataclasses.asdict(self.arguments) | {"output_dir": self.output_dir, "data": self.data.paths}
        computation = self.computation
        model = Llama(self.model.config, self.model.params, computation.settings)
        resolved = resolved_arguments(self.arguments, model, computation.state.trainable, self.max_steps)
        write_run_record(self.output_dir, self.started, self.start, arguments, resolved, model, self.data, self.origin)

    def _move_native_log(self) -> str:
        """Sends XLA's output to a file; returns its path, or "" if it stays on the terminal."""
        with writing(self.output_dir):
            path = self.output_dir / "xla.log"
            if self.native_log is not None and self.native_log.path != path:
                self.native_log.move_to(path)
        return "" if self.native_log is None else str(path)

    def open(self, resources: contextlib.ExitStack) -> None:
        """Opens checkpoints and logs, to be closed with `resources`; restores a resumed state."""
        folder, resume = self.folder, self.folder.resume
        if resume is not None:
            self.computation.restore(Checkpoints(resume.directory), resume.step)
            self._say(f"resumed from {resume}")
        together(self._move_native_log)
        self.was_finished = folder.is_finished(self.max_steps, self.arguments)
        for line in only_first(lambda: folder.prepare_to_resume(self.max_steps, self.arguments)) or []:
            self._say(line)
        self.checkpoints = Checkpoints(self.output_dir / "checkpoints", self.arguments.save_total_limit)
        self.selection = Selection(self.arguments, self.checkpoints)
        # The other processes need the rows, but nobody reads their files.
        kept = self.output_dir if writes_files() else Path(resources.enter_context(tempfile.TemporaryDirectory()))
        log = together(
            lambda: RunLog(
                kept, self.start, self.arguments.logging_steps, folder.records, self.title, self.arguments.report_to
            )
        )
        self.log = resources.enter_context(contextlib.closing(log))
        together(lambda: self.selection.take_over(self.log.evaluations.rows, resume))
        self.samples = None
        if self.arguments.sample_prompts is not None:
            samples = Samples(
                self.computation, self.tokenizer, self.arguments, self.output_dir, self.start, self.console
            )
            self.samples = resources.enter_context(contextlib.closing(samples))
        only_first(self._write_record)

    def execute(self) -> TrainingResult:
        self.stop.defer()
        rows = self.log.evaluations.rows
        self.meter = Meter(self.computation, self.log.metrics.rows)
        self._evaluate_if_due(self.start)  # also one that a signal cut short before its checkpoint
        self._sample_if_due(self.start)
        if self.start and self.selection.must_save(rows, self.start):
            self._save(self.start)
        with TrainingProgress(self.console, self.start, self.max_steps, self.arguments.logging_steps) as progress:
            for number in range(self.start + 1, self.max_steps + 1):
                if self._stop_requested():
                    return self._leave(number - 1)
                if self.selection.stops_early(rows):
                    return self._finish(number - 1)
                self._one_step(number, progress)
                evaluated = self._evaluate_if_due(number)
                self._sample_if_due(number)
                due = number % self.arguments.save_steps == 0 or number == self.max_steps
                if due or self.selection.stops_early(rows) or self.selection.must_save(rows, number):
                    self._save(number)
                if evaluated:
                    only_first(self._write_report)
        return self._leave(self.max_steps) if self._stop_requested() else self._finish(self.max_steps)

    def _stop_requested(self) -> str | None:
        """The signal that asks the run to stop, whichever process it came to."""
        self.stopped_by = any_of(self.stop.requested)
        return self.stopped_by

    def _one_step(self, number: int, progress: TrainingProgress) -> None:
        done = self.computation.step(number)
        if not (math.isfinite(done.loss) and math.isfinite(done.grad_norm)):
            what = f"the loss is {done.loss} and the norm of its gradient {done.grad_norm}"
            raise self._diverged(number, what, self.data.documents_of(done.batch), untrained=number == 1)
        if number == self.start + 1:
            # A run that is stopped before its first checkpoint leaves them to the next one.
            self.computation.publish_programs()
        row = self.meter.row(number, done)
        together(lambda: self.log.step(row))
        progress.update(row)

    def _evaluate_if_due(self, number: int) -> bool:
        """Measures the held-out loss if it is time; returns whether it is now recorded."""
        due = number % self.arguments.eval_steps == 0 or number == self.max_steps
        if not due or not len(self.data.held_out_plan) or self.log.evaluated(number):
            return False
        self._say(f"measuring the held-out loss {f'after step {number}' if number else 'before the first step'}")
        try:
            losses = held_out_loss(self.computation, self._stop_requested)
        except NotFinite as error:
            raise self._diverged(number, str(error), error.documents, untrained=number == 0) from None
        if losses is None or not losses.tokens:
            return False
        row = {"step": number, "eval_loss": losses.mean, "eval_tokens": losses.tokens}
        together(lambda: self.log.evaluation(row | {"eval_loss_by_position": losses.means()}))
        note = self.selection.note(self.log.evaluations.rows)
        self._say(f"held-out loss {losses.mean:.4f} at step {number} ({losses.tokens:,} tokens){note}")
        return True

    def _sample_if_due(self, number: int) -> None:
        every = self.arguments.sample_steps or self.arguments.eval_steps
        if self.samples is not None and (number % every == 0 or number == self.max_steps):
            self.samples.take(number)

    def _save(self, number: int) -> None:
        together(self.log.sync)
        computation = self.computation
        computation.publish_programs()
        description = self.description | {"execution": dataclasses.asdict(computation.execution)}
        best = self.selection.best(self.log.evaluations.rows)
        self.checkpoints.save(
            number,
            computation.state,
            computation.batches.get_state(),
            description,
            self.log.files,
            None if best is None else best.step,
        )
        only_first(self.log.draw)

    def _diverged(self, number: int, what: str, documents: list[str], *, untrained: bool) -> TrainingDiverged:
        # A checkpoint is good if a finite step followed it. The state from which step `number`
        # started may itself be the cause.
        good = self.checkpoints.latest(before=number - 1)
        last_good = None if good is None else self.checkpoints.directory / str(good)
        return TrainingDiverged.at(number, what, documents, last_good=last_good, untrained=untrained)

    def _leave(self, number: int) -> TrainingResult:
        """Saves and stops because of a signal."""
        if number and self.checkpoints.latest() != number:
            self._save(number)
        command = how_to_resume(self.arguments, self.data.paths, self.output_dir, number)
        done = f"saved after step {number}" if number else "stopped before the first step"
        self._say(f"{self.stopped_by}: {done}; resume with: {command}")
        return self._result(number, stopped_by=self.stopped_by)

    def _finish(self, steps: int) -> TrainingResult:
        """Saves the results after the last step, or the last one before the patience ended."""
        if steps < self.max_steps and not self.was_finished:
            self._say(f"stopped early after step {steps}: {self.selection.why_it_stops(self.log.evaluations.rows)}")
        best = self.selection.best(self.log.evaluations.rows)
        if best is not None and best.step != steps:
            self.computation.restore(self.checkpoints, best.step)
        result = self._result(steps, best)
        if self.was_finished:
            say_finished(self.console, self.folder)
            return result
        weights_dir = only_first(lambda: self._save_results(result.model, best))
        if weights_dir is not None:
            say_results(self.console, self.output_dir, weights_dir)
        return result

    def _write_report(self) -> None:
        with writing(self.output_dir / PAGE):
            write_report(self.output_dir)

    def _save_results(self, model: Llama, best: Best | None) -> Path:
        rows = self.log.metrics.rows, self.log.evaluations.rows
        figures = card_figures(self.arguments, model, self.data, *rows, best, self.origin)
        weights_dir = save_results(model, self.output_dir, self.tokenizer, figures)
        self.log.draw()
        self._write_report()
        return weights_dir

    def _result(self, steps: int, best: Best | None = None, stopped_by: str | None = None) -> TrainingResult:
        before, after = losses_before_and_after(self.log.evaluations.rows)
        trainable = self.computation.devices.collect(self.computation.state.trainable)
        model = trained_model(self.model, trainable, self.output_dir)
        if best is None:
            return TrainingResult(model, self.output_dir, steps, before, after, stopped_by)
        return TrainingResult(model, self.output_dir, steps, before, best.value, stopped_by, best.step)

    def _say(self, line: str) -> None:
        say(self.console, line)
