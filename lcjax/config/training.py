"""Training arguments, named as in the Hugging Face trainer where it has them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lcjax.config.parallel.mesh import MeshRequest
from lcjax.errors import InputError, flag, unknown

UNITS = ("file", "folder", "repository", "related")
"""What counts as a document."""
COLUMN_FIELDS = (
    "messages", "conversations", "prompt", "completion", "instruction", "input", "output", "text", "tools", "system",
)  # fmt: skip
"""The fields of a record that --columns may read from columns with other names."""
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
LEVEL_SCHEDULES = ("constant", "constant_with_warmup")
"""The schedules whose rate after the warm-up does not depend on the number of steps."""
DEFAULT_MAX_SEQ_LENGTH = 2048
"""The default context of a run, in tokens."""
OPTIMIZER_MEMORY = ("auto", "device", "host")
TRACKERS = ("tensorboard", "wandb", "mlflow", "none")
"""Where the numbers of a run can go in addition to its own files."""
METRICS = ("eval_loss",)
"""The metrics by which the best evaluation can be selected."""
# Steps are counted in 32 bits.
_MOST_STEPS = 2**31 - 1
_TYPES: dict[type, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "a word"),
}


@dataclasses.dataclass(frozen=True)
class TrainingArguments:
    """How to train: the keyword arguments of `lcjax.train`.

    Raises:
      InputError: a value is out of range, or two values contradict each other.
    """

    output_dir: Path | None = None
    """Folder for adapter, metrics, picture and checkpoints; if not given, a new runs/NAME-TIME."""
    start_from: Path | None = None
    """A checkpoint of an earlier run, or the folder of a run for its newest one: a new run that
    starts from its weights, for example with other data or at a longer context.
    """
    optimizer_state: bool = False
    """With start_from: continue with the moments and the count of the checkpoint's AdamW."""
    max_steps: int = -1
    """Optimizer steps; -1 takes as many as num_train_epochs needs."""
    num_train_epochs: float = 1.0
    """Passes over the training rows, when max_steps is -1."""
    per_device_train_batch_size: int = 1
    """Sequences on the device at once; a sequence is max_seq_length tokens of packed documents."""
    gradient_accumulation_steps: int = 1
    """Number of batches whose gradients make one step, weighted by their tokens."""
    learning_rate: float = 2e-4
    """The highest learning rate, reached after the warm-up."""
    lr_scheduler_type: str = "linear"
    """linear, cosine, constant or constant_with_warmup."""
    warmup_ratio: float = 0.0
    """Fraction of the steps over which the learning rate rises from 0."""
    warmup_steps: int = 0
    """The warm-up in steps, instead of warmup_ratio."""
    weight_decay: float = 0.0
    """AdamW's weight decay; biases and norms are not decayed."""
    max_grad_norm: float = 1.0
    """Gradients with a larger global norm are scaled down to it; 0 does not clip."""
    router_aux_loss_coef: float | None = None
    """Weight of the loss that balances the experts of a mixture, with --full-finetuning; by default
    the model's own, 0 for none. An adapter does not train the router.
    """
    optimizer_memory: str = "auto"
    """Where AdamW's state is between steps: device, host (updated on the device layer by layer), or
    auto. auto is host if bfloat16 weights are trained, because their float32 master weights and
    moments are six times their size; otherwise it is device.
    """
    documents: str = "file"
    """What counts as a document: file, folder (its text files, in order), repository (its files,
    after what they import), or related (similar texts joined up to the length).
    """
    columns: tuple[str, ...] = ()
    """Columns of the data that have other names than the fields of a record, as field=column; for
    example instruction=question output=answer.
    """
    data_weights: tuple[float, ...] = ()
    """A share of the tokens for each path of --data; small sources repeat. By default every
    document occurs once per epoch.
    """
    seed: int = 42
    """Seed of the adapter's initialization, the held-out split, the data order and dropout."""
    eval_fraction: float = 0.05
    """Fraction of the documents held out to measure the loss; 0 holds none out."""
    eval_batches: int = 8
    """The most batches of held-out text per evaluation, spread evenly over it."""
    eval_steps: int = 50
    """Steps between evaluations; the first is before step 1 and the last after the last step."""
    save_steps: int = 50
    """Steps between checkpoints; the last step is always saved."""
    save_total_limit: int = 3
    """Number of newest checkpoints to keep."""
    load_best_model_at_end: bool = False
    """Save the weights of the best evaluation instead of the last step's. A checkpoint is saved
    wherever an evaluation is the best so far, so eval_steps and save_steps are independent; it
    exists in addition to save_total_limit. The evaluation before step 1 does not count.
    """
    metric_for_best_model: str = METRICS[0]
    """What the best evaluation has the lowest value of: eval_loss."""
    early_stopping_patience: int = 0
    """Stop after so many evaluations in a row that do not improve the metric; 0 never stops early.
    """
    early_stopping_threshold: float = 0.0
    """By how much an evaluation must improve the metric to count as an improvement."""
    sample_prompts: Path | None = None
    """A file of prompts, one a line, or .jsonl with the messages of a conversation on each line.
    What the model writes during the run is in samples.jsonl.
    """
    sample_steps: int = 0
    """Steps between samples; 0 samples at every evaluation."""
    sample_tokens: int = 64
    """The most tokens of a sample; they are the most likely ones (greedy)."""
    report_to: tuple[str, ...] = ("tensorboard",)
    """Where the numbers go in addition to the run's files: tensorboard, wandb, mlflow (several are
    allowed), or none. For two of them: pip install 'lcjax[wandb]', 'lcjax[mlflow]'.
    """
    logging_steps: int = 1
    """Steps between lines on a terminal without cursor control, and between TensorBoard points;
    metrics.jsonl has every step.
    """
    programs_dir: Path | None = None
    """Folder of compiled programs; if not given, lcjax/programs in the user's cache folder. With
    them a resumed run continues bit for bit, and a run of the same shape starts sooner. Use a disk
    that outlives the machine and that others cannot write to.
    """
    context_parallel_size: int | None = None
    """Number of GPUs that share a sequence; by default as many as leave each 16,384 tokens or more.
    More share it if a step has too few micro-batches for the others.
    """
    data_parallel_size: int | None = None
    """Number of groups of GPUs with different micro-batches of a step; by default the GPUs that do
    not share a sequence. It divides --gradient-accumulation-steps.
    """
    ulysses_degree: int | None = None
    """The part of the context that exchanges tokens for heads (all-to-all); by default as many GPUs
    of a host as the heads allow. For experts.
    """
    ring_degree: int | None = None
    """The part of the context along which keys and values travel; by default the rest. For experts.
    """
    shard_weights: str = "auto"
    """Whether the GPUs of a host share the weights, gathered a layer at a time: layers, none, or
    auto (layers if every weight is trained, or if the weights take more than half of a GPU).
    """
    skip_leak_check: bool = False
    """Skip the check that packed documents do not see each other; see lcjax.leak."""
    resume_from_checkpoint: str | None = None
    """Resume a run: "latest" (with its --output-dir), or the path of a checkpoint."""

    def __post_init__(self):
        self._take_paths()
        self._check_types()
        self._check_ranges()
        if self.optimizer_memory not in OPTIMIZER_MEMORY:
            known = ", ".join(OPTIMIZER_MEMORY)
            raise InputError(f"--optimizer-memory {self.optimizer_memory} is unknown; use one of {known}")
        _ = self.mesh_request
        if self.optimizer_state and self.start_from is None:
            raise InputError("--optimizer-state has no effect without --start-from; give both, or omit it")
        self._check_selection()
        if self.documents not in UNITS:
            raise InputError(unknown("--documents", self.documents, UNITS))
        parse_columns(self.columns)
        if self.warmup_steps and self.warmup_ratio:
            raise InputError(
                f"--warmup-steps {self.warmup_steps} and --warmup-ratio {self.warmup_ratio} "
                "contradict each other; give one"
            )
        if self.max_steps > 0 and self.warmup_steps > self.max_steps:
            raise InputError(f"--warmup-steps {self.warmup_steps} exceeds --max-steps {self.max_steps}; lower it")
        if self.lr_scheduler_type not in SCHEDULES:
            raise InputError(
                f"--lr-scheduler-type {self.lr_scheduler_type} is unknown; use one of {', '.join(SCHEDULES)}"
            )

    def _check_selection(self) -> None:
        if self.metric_for_best_model not in METRICS:
            raise InputError(unknown("metric_for_best_model", self.metric_for_best_model, METRICS))
        if self.early_stopping_threshold and not self.early_stopping_patience:
            raise InputError(
                f"--early-stopping-threshold {self.early_stopping_threshold:g} has no effect without "
                "--early-stopping-patience; give both, or omit it"
            )
        if self.selects_by and not self.eval_fraction:
            raise InputError(
                f"{self.selects_by} needs held-out text, and --eval-fraction is 0; give a fraction, or omit one of them"
            )

    @property
    def selects_by(self) -> str | None:
        """The flag that makes the run's result depend on its evaluations, if there is one."""
        if self.load_best_model_at_end:
            return "--load-best-model-at-end"
        return "--early-stopping-patience" if self.early_stopping_patience else None

    def _take_paths(self) -> None:
        """Converts paths given as strings, and the reverse; programs may give either."""
        for name in ("output_dir", "start_from", "programs_dir", "sample_prompts"):
            if isinstance(path := getattr(self, name), str):
                object.__setattr__(self, name, Path(path))
        if isinstance(self.resume_from_checkpoint, Path):
            object.__setattr__(self, "resume_from_checkpoint", str(self.resume_from_checkpoint))

    def _check_types(self) -> None:
        """Checks the types, because a program may pass anything."""
        for field in dataclasses.fields(TrainingArguments):
            value = getattr(self, field.name)
            types, expected = _TYPES.get(type(field.default), (object, ""))
            if field.name == "router_aux_loss_coef" and value is not None:
                types, expected = _TYPES[float]
            if not isinstance(value, types) or (isinstance(value, bool) and expected in ("a number", "a whole number")):
                raise InputError(f"{flag(field.name)} {value!r} is of type {type(value).__name__}; give {expected}")

    @property
    def mesh_request(self) -> MeshRequest:
        """How the work is to be divided over devices."""
        return MeshRequest.of(self)

    def number_of_steps(self, rows: int) -> int:
        """max_steps, or the number of steps in num_train_epochs passes over `rows` rows.

        Raises:
          InputError: there are more steps than can be counted.
        """
        if self.max_steps > 0:
            return self.max_steps
        rows_per_step = self.per_device_train_batch_size * self.gradient_accumulation_steps
        steps = max(1, math.ceil(self.num_train_epochs * rows / rows_per_step))
        if steps > _MOST_STEPS:
            raise InputError(
                f"--num-train-epochs {self.num_train_epochs:g} of {rows:,} rows are {steps:.3g} "
                f"steps, and a run has at most {_MOST_STEPS:,}; lower it, or give --max-steps"
            )
        return steps

    def _check_ranges(self):
        at_least_one = (
            "per_device_train_batch_size", "gradient_accumulation_steps", "eval_batches", "eval_steps", "save_steps",
            "save_total_limit", "logging_steps",
        )  # fmt: skip
        ranges = {name: (1, float("inf")) for name in at_least_one}
        ranges |= {
            name: (0, float("inf"))
            for name in (
                "learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "early_stopping_patience",
                "early_stopping_threshold", "sample_steps",
            )
        }  # fmt: skip
        ranges |= {
            "sample_tokens": (1, 4096),
            "warmup_ratio": (0, 1),
            "eval_fraction": (0, 0.9),
            "seed": (0, 2**32 - 1),
        }
        if self.router_aux_loss_coef is not None:
            ranges["router_aux_loss_coef"] = (0, float("inf"))
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not (low <= value <= high and math.isfinite(value)):
                bounds = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
                raise InputError(f"{flag(name)} {value} is out of range; it must be {bounds}")
        if not (self.max_steps == -1 or 0 < self.max_steps <= _MOST_STEPS):
            raise InputError(
                f"--max-steps {self.max_steps} is out of range; give a number from 1 to "
                f"{_MOST_STEPS:,}, or -1 for whole epochs"
            )
        if self.sample_steps and self.sample_prompts is None:
            raise InputError(f"--sample-steps {self.sample_steps} has no effect without --sample-prompts; give both")
        if self.max_steps == -1 and not 0 < self.num_train_epochs < math.inf:
            raise InputError(f"--num-train-epochs {self.num_train_epochs} is out of range; it must be positive")


def parse_columns(words: Sequence[str]) -> dict[str, str]:
    """The column of each field that `field=column` words name; commas may separate several.

    Raises:
      InputError: a word has another form, a field is unknown, or a name occurs twice.
    """
    columns: dict[str, str] = {}
    for pair in (pair for word in ([words] if isinstance(words, str) else words) for pair in str(word).split(",")):
        field, equals, column = (part.strip() for part in pair.partition("="))
        if not (field and equals and column):
            raise InputError(f"--columns {pair!r} is not field=column; give for example output=answer")
        if field not in COLUMN_FIELDS:
            raise InputError(unknown("--columns", field, COLUMN_FIELDS))
        if field in columns or column in columns.values():
            raise InputError(f"--columns names {field if field in columns else column} twice; name it once")
        columns[field] = column
    return columns


def check_weights(weights: Sequence[float], paths: int) -> None:
    """Raises InputError unless there is one positive weight for each path of the data."""
    if len(weights) != paths:
        raise InputError(
            f"--data-weights has {len(weights)} weights for {paths} paths of --data; give one weight for each path"
        )
    for weight in weights:
        if not 0 < weight < math.inf:
            raise InputError(
                f"the weight {weight} in --data-weights must be a positive number; omit the paths that you do not want"
            )
