"""The training run: from batches to checkpoints and an adapter, exactly resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from lcjax import step
from lcjax.cli.native_log import NativeLog
from lcjax.cli.terminal import say
from lcjax.config.training import TrainingArguments
from lcjax.data import Data, iterate
from lcjax.evaluate.positions import LossByPosition, batch_loss_by_position
from lcjax.leak import refuse_leak
from lcjax.model import Llama, ModelSettings, lora
from lcjax.parallel.devices import Devices
from lcjax.parallel.placement import committed
from lcjax.parallel.processes import any_of, only_first, together, writes_files
from lcjax.plan.choosing.budget import budget_here
from lcjax.plan.compiling.run import Run
from lcjax.step.program import build_program
from lcjax.train.checkpoints.checkpoint import Checkpoints
from lcjax.train.checkpoints.folder import RunFolder, open_run_folder
from lcjax.train.checkpoints.same_run import describe_arguments, describe_data, describe_model
from lcjax.train.compiled.execution import SavedExecution, open_programs, settings_for_rows
from lcjax.train.compiled.fitting import COMPILED_AGAIN, fitting_settings
from lcjax.train.data import load_run_data
from lcjax.train.devices import mesh_of_model
from lcjax.train.disk import writing
from lcjax.train.divergence import TrainingDiverged
from lcjax.train.interrupt import StopRequest
from lcjax.train.outcome import losses_before_and_after, save_results, say_finished, say_results, trained_model
from lcjax.train.reporting.how_to_resume import how_to_resume
from lcjax.train.reporting.metrics import RunLog
from lcjax.train.reporting.picture import run_title
from lcjax.train.reporting.progress import TrainingProgress
from lcjax.train.reporting.run_record import write_run_record
from lcjax.train.reporting.start_line import start_line
from lcjax.train.result import TrainingResult, default_output_dir

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
        self.description = describe_arguments(arguments) | describe_model(model)
        folder.refuse_other_run(self.description)
        if not isinstance(data, Data):
            data = load_run_data(data, tokenizer, model.settings.max_seq_length, arguments, folder.started, console)
        data.check_fit(model.config.vocab_size, model.settings.max_seq_length)
        self.data: Data = data
        folder.refuse_other_data(data, arguments)
        self.started = folder.started if folder.resume or data.date is None else data.date.astimezone()
        self.title = run_title(model.settings, data.paths)
        self.max_steps = arguments.number_of_steps(len(data.train_plan))
        self.description |= describe_data(data, self.max_steps) | {"started": self.started.isoformat()}
        self._open_programs(resources)
        self._build_step()

    def _write_record(self) -> None:
        arguments = dataclasses.asdict(self.arguments) | {"output_dir": self.output_dir, "data": self.data.paths}
        write_run_record(self.output_dir, self.started, self.start, arguments, self.model, self.data, self.max_steps)

    def _open_programs(self, resources: contextlib.ExitStack) -> None:
        """Makes JAX compile into the run's own folder of programs and reuse the programs in it."""
        self.saved_execution = SavedExecution.of_json(self.folder.saved.get("execution"))
        self.programs = open_programs(self.model, self.arguments, self.saved_execution)
        resources.enter_context(self.programs.compiling())
        if self.programs.lost:
            self._say(f"warning: {self.programs.lost}; {COMPILED_AGAIN}")

    def _build_step(self) -> None:
        arguments, model = self.arguments, self.model
        self.devices = Devices.of(mesh_of_model(model, arguments))
        params = self.devices.distribute(model.params)
        settings = settings_for_rows(model.settings, self.data.train_plan, "training")
        settings = step.with_mesh(settings, self.devices.shape)
        fitted = self._fitting_settings(settings, params)
        self.execution = SavedExecution.of(self.programs, fitted)
        settings = fitted or settings
        program = build_program(model.config, params, settings, arguments, self.max_steps)
        self.frozen, self.schedule = program.frozen, program.schedule
        if not arguments.skip_leak_check:
            self._say("checking that packed documents do not see each other")
            refuse_leak(Llama(model.config, params, settings), self.data, self.devices)
        self.train_step = step.jit_train_step(program.objective, program.optimizer, devices=self.devices)
        self.token_scores = step.jit_token_scores(self.devices)
        evaluated = settings_for_rows(model.settings, self.data.held_out_plan, "held-out")
        self.settings = dataclasses.replace(settings, one_document_a_row=evaluated.one_document_a_row)
        state = step.init_state(program.optimizer, program.trainable, arguments.seed)
        # Committed to its devices, as a restored state is. Otherwise JAX would compile a separate
        # step for each of the two.
        self.state = committed(self.devices.distribute(state))
        self.batches = iterate(
            self.data.train_dataset(arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps)
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(program.trainable))
        self._say(start_line(model, settings, self.data, arguments, count, self.max_steps))

    def _fitting_settings(self, settings: ModelSettings, params: lora.Tree) -> ModelSettings | None:
        """The settings with which the step fits this GPU; None on a CPU."""
        budget, model = budget_here(), self.model
        if budget is None:
            return None
        run = Run.here(model.config, params, self.arguments, model.settings.lora)
        log = together(self._move_native_log)
        self._say(f"compiling the candidate forms of the step{log and f'; output of XLA goes to {log}'}")
        return fitting_settings(run, settings, self.saved_execution, budget, self.console)

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
            self.state, iterator = Checkpoints(resume.directory).restore(resume.step, self.state)
            self.batches.set_state(iterator)
            self._say(f"resumed from {resume}")
        together(self._move_native_log)
        self.was_finished = folder.is_finished(self.max_steps)
        for line in only_first(lambda: folder.set_aside_what_resuming_overwrites(self.max_steps)) or []:
            self._say(line)
        self.checkpoints = Checkpoints(self.output_dir / "checkpoints", self.arguments.save_total_limit)
        # The other processes need the rows, but nobody reads their files.
        kept = self.output_dir if writes_files() else Path(resources.enter_context(tempfile.TemporaryDirectory()))
        log = together(lambda: RunLog(kept, self.start, self.arguments.logging_steps, folder.records, self.title))
        self.log = resources.enter_context(contextlib.closing(log))
        only_first(self._write_record)

    def execute(self) -> TrainingResult:
        self.stop.defer()
        self._evaluate_if_due(self.start)  # also one that a signal cut short before its checkpoint
        with TrainingProgress(self.console, self.start, self.max_steps, self.arguments.logging_steps) as progress:
            for number in range(self.start + 1, self.max_steps + 1):
                if self._stop_requested():
                    return self._leave(number - 1)
                self._one_step(number, progress)
                self._evaluate_if_due(number)
                if number % self.arguments.save_steps == 0 or number == self.max_steps:
                    self._save(number)
        return self._leave(self.max_steps) if self._stop_requested() else self._finish()

    def _stop_requested(self) -> str | None:
        """The signal that asks the run to stop, whichever process it came to."""
        self.stopped_by = any_of(self.stop.requested)
        return self.stopped_by

    def _one_step(self, number: int, progress: TrainingProgress) -> None:
        began = time.perf_counter()
        batch = next(self.batches)
        divided = self.devices.divide_step({k: batch[k] for k in step.BATCH_KEYS})
        self.state, metrics = self.train_step(self.state, self.frozen, divided)
        loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            what = f"the loss is {loss} and the norm of its gradient {grad_norm}"
            raise self._diverged(number, what, self.data.documents_of(batch), untrained=number == 1)
        tokens = int(np.count_nonzero(batch["segment_ids"]))
        rate = tokens / (time.perf_counter() - began)
        row = {
            "step": number,
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": float(jnp.asarray(self.schedule(number - 1))),
            "tokens": tokens,
            "tokens_per_second": round(rate, 1),
        }
        together(lambda: self.log.step(row))
        progress.update(number, loss, rate)

    def _evaluate_if_due(self, number: int) -> None:
        due = number % self.arguments.eval_steps == 0 or number == self.max_steps
        if not due or self.log.evaluated(number):
            return
        self._say(f"measuring the held-out loss {f'after step {number}' if number else 'before the first step'}")
        model, losses = self._trained(self.settings), LossByPosition.none()
        for batch in self.data.evaluation_batches(
            self.arguments.per_device_train_batch_size, self.arguments.eval_batches
        ):
            if self._stop_requested():
                return
            losses += batch_loss_by_position(model, batch, self.token_scores, self.devices)
            if not math.isfinite(losses.total):
                documents = self.data.documents_of(batch, held_out=True)
                raise self._diverged(number, f"the held-out loss is {losses.total}", documents, untrained=number == 0)
        if losses.tokens:
            row = {"step": number, "eval_loss": losses.mean, "eval_tokens": losses.tokens}
            together(lambda: self.log.evaluation(row | {"eval_loss_by_position": losses.means()}))
            self._say(f"held-out loss {losses.mean:.4f} at step {number} ({losses.tokens:,} tokens)")

    def _trained(self, settings: ModelSettings) -> Llama:
        """The model with its current weights."""
        return Llama(self.model.config, lora.combine(self.state.trainable, self.frozen), settings)

    def _save(self, number: int) -> None:
        together(self.log.sync)
        compiled = self.programs.publish()
        if compiled and self.saved_execution is not None and not self.programs.lost:
            self._say(
                f"warning: the step is compiled to another program than at the start of the run; {COMPILED_AGAIN}"
            )
        description = self.description | {"execution": dataclasses.asdict(self.execution)}
        self.checkpoints.save(number, self.state, self.batches.get_state(), description, self.log.files)
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

    def _finish(self) -> TrainingResult:
        result = self._result(self.max_steps)
        if self.was_finished:
            say_finished(self.console, self.folder)
            return result
        weights_dir = only_first(lambda: self._save_results(result.model))
        if weights_dir is not None:
            say_results(self.console, self.output_dir, weights_dir, self.log.evaluations.rows)
        return result

    def _save_results(self, model: Llama) -> Path:
        weights_dir = save_results(model, self.output_dir, self.tokenizer)
        self.log.draw()
        return weights_dir

    def _result(self, steps: int, stopped_by: str | None = None) -> TrainingResult:
        before, after = losses_before_and_after(self.log.evaluations.rows)
        model = trained_model(self.model, self.devices.collect(self.state.trainable))
        return TrainingResult(model, self.output_dir, steps, before, after, stopped_by)

    def _say(self, line: str) -> None:
        say(self.console, line)
