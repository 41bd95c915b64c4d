"""The training run: batches in, checkpoints and an adapter out, exactly resumable."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from lcjax import api, lora, optim, step
from lcjax.data import Data, iterate, load_corpus
from lcjax.errors import InputError
from lcjax.model import Llama
from lcjax.remat import resolve_policy
from lcjax.train.arguments import TrainingArguments
from lcjax.train.checkpoint import Checkpoints
from lcjax.train.interrupt import StopRequest
from lcjax.train.metrics import RunLog, read_rows
from lcjax.train.progress import TrainingProgress
from lcjax.train.resume import ResumePoint, find_resume_point, refuse_other_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TrainingDiverged(RuntimeError):
    """The loss became NaN or infinite; the message names the step, its documents and the last good checkpoint."""


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a run leaves. Losses are held-out, in nats a token, None without held-out documents.

    `model` carries the trained weights. `stopped_by` names the signal that ended the run early, else it is None.
    """

    model: Llama
    output_dir: Path
    steps: int
    loss_before: float | None
    loss_after: float | None
    stopped_by: str | None = None


def train(
    model: Llama,
    tokenizer: PreTrainedTokenizerFast,
    data: Sequence[str | Path],
    arguments: TrainingArguments | None = None,
    *,
    console: Console | None = None,
    stop: StopRequest | None = None,
    **overrides: Any,
) -> TrainingResult:
    """Fine-tunes the adapter of `model`, or every weight where it has none, on the documents in `data`.

    Args:
      model: from `lcjax.get_peft_model` (LoRA) or `lcjax.from_pretrained` (full fine-tuning); unchanged by the run.
      tokenizer: the model's.
      data: text files, .jsonl files, folders; see `lcjax.data.read_documents`.
      arguments: or single fields of `TrainingArguments` by keyword, e.g. `max_steps=100, learning_rate=1e-4`.
      console: where progress is shown; standard error when None.
      stop: when its `requested` is set the run saves and returns; by default SIGTERM and SIGINT set it.

    Returns:
      a `TrainingResult`; its output_dir holds adapter/ (or model/), metrics.jsonl, evaluation.jsonl, loss.png, tensorboard/ and
      checkpoints/.

    Raises:
      InputError: data, arguments or output directory that the user can mend.
      TrainingDiverged: the loss is no finite number any more.
    """
    arguments = dataclasses.replace(arguments or TrainingArguments(), **overrides)
    if stop is None:
        with StopRequest() as stop:
            return train(model, tokenizer, data, arguments, console=console, stop=stop)
    run = _Run(model, tokenizer, data, arguments, console or Console(stderr=True), stop)
    try:
        return run.execute()
    finally:
        run.close()


class _Run:
    def __init__(self, model, tokenizer, data_paths, arguments, console, stop):
        self.model: Llama = model
        self.tokenizer = tokenizer
        self.arguments: TrainingArguments = arguments
        self.console: Console = console
        self.stop: StopRequest = stop
        self.output_dir = arguments.output_dir or default_output_dir(model.settings.name_or_path)
        self.resume: ResumePoint | None = find_resume_point(arguments.resume_from_checkpoint, self.output_dir)
        self.data: Data = load_corpus(
            data_paths,
            tokenizer,
            model.settings.max_seq_length,
            held_out_fraction=arguments.eval_fraction,
            seed=arguments.seed,
            vocab_size=model.config.vocab_size,
            progress=console.is_terminal,
        )
        self._say(self.data.summary())
        self.max_steps = _number_of_steps(arguments, len(self.data.train_plan))
        self._build_step()
        self._open_output()

    def _build_step(self) -> None:
        arguments, model = self.arguments, self.model
        trains = lora.everything if model.settings.lora is None else lora.adapters_only
        mask = lora.trainable_mask(model.params, trains)
        trainable, self.frozen = lora.partition(model.params, mask)
        self.schedule = optim.make_schedule(
            arguments.lr_scheduler_type,
            arguments.learning_rate,
            self.max_steps,
            warmup_steps=arguments.warmup_steps,
            warmup_ratio=arguments.warmup_ratio,
        )
        optimizer = optim.make_optimizer(
            self.schedule, mask, weight_decay=arguments.weight_decay, max_grad_norm=arguments.max_grad_norm
        )
        objective = step.Objective(model.config, model.settings)
        self.train_step = step.jit_train_step(objective, optimizer)
        self.evaluate_batch = step.jit_evaluate(objective)
        self.state = step.init_state(optimizer, trainable, arguments.seed)
        self.batches = iterate(
            self.data.train_dataset(arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps)
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(trainable))
        policy = resolve_policy(model.settings.use_gradient_checkpointing, model.settings.max_seq_length)
        self._say(f"{count:,} trainable parameters; gradient checkpointing: {policy}; attention: xla")

    def _open_output(self) -> None:
        """Opens checkpoints and logs, and takes up the state of the run to go on with."""
        run = self._describe()
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"--output-dir {self.output_dir} cannot be created ({error.strerror}); choose another"
            ) from None
        if self.resume is not None:
            source = Checkpoints(self.resume.directory)
            refuse_other_run(source.run(self.resume.step), run, self.resume)
            self.state, iterator = source.restore(self.resume.step, self.state)
            self.batches.set_state(iterator)
            source.close()
            self._say(f"resumed from {self.resume.directory / str(self.resume.step)}")
        self.start = self.resume.step if self.resume else 0
        source_dir = self.resume.directory.parent if self.resume else None
        self.checkpoints = Checkpoints(self.output_dir / "checkpoints", self.arguments.save_total_limit)
        self.log = RunLog(self.output_dir, self.start, self.arguments.logging_steps, source_dir)

    def _describe(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be this run's, and the arguments for the record."""
        settings = dataclasses.asdict(self.model.settings)
        # Where the files lie and how the step is scheduled may change between two sittings; the numbers do not.
        for free in ("name_or_path", "use_gradient_checkpointing", "attention"):
            del settings[free]
        return _jsonable(
            {
                "arguments": dataclasses.asdict(self.arguments) | {"output_dir": self.output_dir},
                "max_steps": self.max_steps,
                "model": dataclasses.asdict(self.model.config) | settings | {"dtype": str(self.model.head_VD.dtype)},
                "weights": _fingerprint(self.model),
                "data": self.data.fingerprint(),
            }
        )

    def execute(self) -> TrainingResult:
        arguments = self.arguments
        if self.resume is None:
            self._evaluate(0)
        with TrainingProgress(self.console, self.start, self.max_steps, arguments.logging_steps) as progress:
            for number in range(self.start + 1, self.max_steps + 1):
                if self.stop.requested:
                    return self._leave(number - 1)
                self._one_step(number, progress)
                last = number == self.max_steps
                if number % arguments.eval_steps == 0 or last:
                    self._evaluate(number)
                if number % arguments.save_steps == 0 or last:
                    self._save(number)
        return self._finish()

    def _one_step(self, number: int, progress: TrainingProgress) -> None:
        began = time.perf_counter()
        batch = next(self.batches)
        self.state, metrics = self.train_step(self.state, self.frozen, {k: batch[k] for k in step.BATCH_KEYS})
        loss = float(metrics.loss)
        if not math.isfinite(loss):
            raise TrainingDiverged(self._explain_divergence(number, loss, batch))
        tokens = int(np.count_nonzero(batch["segment_ids"]))
        rate = tokens / (time.perf_counter() - began)
        self.log.step(
            {
                "step": number,
                "loss": loss,
                "grad_norm": float(metrics.grad_norm),
                "learning_rate": float(jnp.asarray(self.schedule(number - 1))),
                "tokens": tokens,
                "tokens_per_second": round(rate, 1),
            }
        )
        progress.update(number, loss, rate)

    def _evaluate(self, number: int) -> None:
        total, tokens = 0.0, 0
        trainable = self.state.trainable
        for batch in self.data.evaluation_batches(
            self.arguments.per_device_train_batch_size, self.arguments.eval_batches
        ):
            if self.stop.requested:
                return
            loss, count = self.evaluate_batch(trainable, self.frozen, {k: batch[k] for k in step.BATCH_KEYS})
            total, tokens = total + float(loss), tokens + int(count)
        if tokens:
            self.log.evaluation({"step": number, "eval_loss": total / tokens, "eval_tokens": tokens})
            self._say(f"held-out loss {total / tokens:.4f} at step {number} ({tokens:,} tokens)")

    def _save(self, number: int) -> None:
        self.checkpoints.save(number, self.state, self.batches.get_state(), self._describe())
        self.log.draw()

    def _leave(self, number: int) -> TrainingResult:
        """Saves and stops because a signal asked for it."""
        if number > self.start and self.checkpoints.latest() != number:
            self._save(number)
        if number:
            self._say(
                f"{self.stop.requested}: saved after step {number}; go on with: python -m lcjax.train "
                f"--output-dir {self.output_dir} --resume-from-checkpoint latest"
            )
        else:
            self._say(f"{self.stop.requested}: stopped before the first step; nothing to save")
        return self._result(number, stopped_by=self.stop.requested)

    def _finish(self) -> TrainingResult:
        result = self._result(self.max_steps)
        if self.model.settings.lora is None:
            weights_dir = self.output_dir / "model"
            api.save_merged(result.model, weights_dir, self.tokenizer)
        else:
            weights_dir = self.output_dir / "adapter"
            api.save_pretrained(result.model, weights_dir)
        picture = self.log.draw()
        if result.loss_before is not None and result.loss_after is not None:
            self._say(f"held-out loss {result.loss_before:.4f} before, {result.loss_after:.4f} after")
        self._say(f"{weights_dir.name:<11} {weights_dir}")
        for name, path in (("metrics", self.log.metrics.path), ("picture", picture)):
            self._say(f"{name:<11} {path}")
        self._say(f"{'checkpoints':<11} {self.checkpoints.directory}")
        self._say(f"{'tensorboard':<11} {self.output_dir / 'tensorboard'}")
        return result

    def _result(self, steps: int, stopped_by: str | None = None) -> TrainingResult:
        evaluations = read_rows(self.log.evaluations.path)
        params = lora.combine(self.state.trainable, self.frozen)
        return TrainingResult(
            model=Llama(self.model.config, params, self.model.settings),
            output_dir=self.output_dir,
            steps=steps,
            loss_before=evaluations[0]["eval_loss"] if evaluations else None,
            loss_after=evaluations[-1]["eval_loss"] if evaluations else None,
            stopped_by=stopped_by,
        )

    def _explain_divergence(self, number: int, loss: float, batch) -> str:
        latest = self.checkpoints.latest()
        names = self.data.documents_of(batch)
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        good = self.checkpoints.directory / str(latest) if latest else "none yet"
        return (
            f"the loss is {loss} at step {number}, in a batch of {shown}; last good checkpoint: {good}; lower --learning-rate, "
            "or leave that text out"
        )

    def close(self) -> None:
        for name in ("checkpoints", "log"):
            if hasattr(self, name):
                getattr(self, name).close()

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)


def default_output_dir(name_or_path: str) -> Path:
    """runs/NAME-TIME, a folder that does not exist yet."""
    name = Path(name_or_path).stem.lower() or "model"
    return Path("runs") / f"{name}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _number_of_steps(arguments: TrainingArguments, rows: int) -> int:
    if arguments.max_steps > 0:
        return arguments.max_steps
    rows_a_step = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    return max(1, math.ceil(arguments.num_train_epochs * rows / rows_a_step))


def _fingerprint(model: Llama) -> str:
    """Tells base models of one shape apart by their norms' weights, which are small and differ between any two trainings."""
    digest = hashlib.blake2b(digest_size=16)
    for norm in (model.params["norm"], model.params["layers"]["input_layernorm"]):
        digest.update(np.asarray(norm["weight"].astype(jnp.float32)).tobytes())
    return digest.hexdigest()


def _jsonable(value: Any) -> Any:
    """Tuples to lists and paths to strings, so that the value equals what JSON gives back."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value
