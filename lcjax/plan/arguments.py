"""The flags of `lcjax plan`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lcjax.cli.outputs import check_outputs
from lcjax.config import ALL_LINEAR, LoraConfig
from lcjax.config.memory import PINNABLE_SHARE
from lcjax.config.rope import LONGEST
from lcjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class PlanArguments:
    """Finds out whether a fine-tuning run fits a GPU, on a machine without one.

    Compiles the step that lcjax.train runs and reports its memory. The exit code is 0 if the step
    fits, 1 if it does not, and 2 if the arguments are invalid. Examples:

      lcjax plan --model llama-3.1-8b --max-seq-length 131072 --quantize nf4 --lora-r 32
      lcjax plan --model llama-3.1-8b --gpu rtx4090 --quantize nf4 --find-max
      lcjax plan --model path/of/config.json --table
      lcjax plan --config run.yaml --gpu rtx4090
    """

    model: str
    """A preset such as llama-3.1-8b, a config.json, a directory that contains one, a hub id, or a
    .gguf file.
    """
    config: Path | None = None
    """The settings of a run: a YAML file for lcjax train, or a run's run.yaml. Flags override it.
    """
    gpu: str = "h100-80gb"
    """A name in lcjax/plan/targets, e.g. rtx4090, a100-40gb, h100-80gb, h200."""
    max_seq_length: int | None = None
    """Tokens of context. Default: the model's trained context."""
    quantize: str | None = None
    """nf4: frozen weights in four bits. Default: bfloat16, or the format of a model's publisher."""
    lora_r: int = LoraConfig.r
    """Rank of the adapter; 0 trains every weight."""
    adapter: Path | None = None
    """As in lcjax.train: a PEFT directory to train further, with its rank and linear maps."""
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    """The linear maps of each layer that get an adapter, e.g. q_proj v_proj; all-linear for all."""
    use_gradient_checkpointing: str = "auto"
    """auto, none, full, offload (or unsloth), offload_attn."""
    memory: str = "auto"
    """As in lcjax.train: auto (tiles above 32,768 tokens), none, or settings such as
    head_groups=8,fetch_ahead=false,save_every=2."""
    loss_chunk: int | None = None
    """As in lcjax.train: the number of tokens whose logits are computed at a time."""
    attention: str = "auto"
    """Implementation of attention: auto (pallas), pallas, mosaic, cudnn, fa3 or xla."""
    optimizer_memory: str = "auto"
    """As in lcjax.train: auto (host if every weight is trained), device or host."""
    vram_gb: float | None = None
    """Plan for a GPU of the same kind that is sold with this many GB of memory."""
    host_gb: float | None = None
    """GiB of each host's memory that may be pinned. Default: no limit."""
    host_memory: float | None = None
    """GiB of memory that each host has, 85% of which lcjax.train may pin."""
    find_max: bool = False
    """Search for the longest context that fits, in multiples of 1,024 tokens."""
    table: bool = False
    """Find the longest context for every GPU."""
    json: str | None = None
    """Write the plan as JSON to this file, or to standard output if it is -."""
    plot: Path | None = None
    """Plot memory against context length in this .png file."""
    gpus: int = 1
    """GPUs per host, which share every sequence."""
    hosts: int = 1
    """Number of hosts."""
    context_parallel_size: int | None = None
    """As in lcjax.train: the number of GPUs that share a sequence. Default: all."""
    data_parallel_size: int | None = None
    """As in lcjax.train: the number of groups of GPUs with different sequences."""
    ulysses_degree: int | None = None
    """As in lcjax.train: the part of the context that exchanges tokens for heads."""
    ring_degree: int | None = None
    """As in lcjax.train: the part of the context along which keys and values travel."""
    per_device_train_batch_size: int = 1
    """As in lcjax.train: sequences on the device at once."""
    gradient_accumulation_steps: int | None = None
    """As in lcjax.train. Default: one for each group of GPUs with different sequences."""
    shard_weights: str = "auto"
    """As in lcjax.train: layers (the GPUs of a host share the weights), none or auto."""

    def __post_init__(self):
        if self.host_gb is not None and self.host_memory is not None:
            raise InputError(
                f"--host-gb {self.host_gb} and --host-memory {self.host_memory} limit the same memory; omit one"
            )
        sizes = {"--vram-gb": self.vram_gb, "--host-gb": self.host_gb, "--host-memory": self.host_memory}
        for flag, value in sizes.items():
            if value is not None and not value > 0:
                raise InputError(f"{flag} {value} is out of range; it must be positive")
        if self.max_seq_length is not None and not 2 <= self.max_seq_length <= LONGEST:
            raise InputError(
                f"--max-seq-length {self.max_seq_length} is out of range; it must be from 2 to {LONGEST:,}"
            )
        if (self.find_max or self.table) and self.max_seq_length is not None:
            searching = "--find-max" if self.find_max else "--table"
            raise InputError(f"{searching} searches for the length and --max-seq-length sets it; remove one of them")
        if self.table and (self.find_max or self.vram_gb or self.plot):
            raise InputError("--table searches every GPU; remove --find-max, --vram-gb and --plot")
        check_outputs([self.model], json=self.json, plot=self.plot)

    @property
    def pinnable_gb(self) -> float | None:
        """GiB of each host's memory that may be pinned; None for no limit."""
        return self.host_gb if self.host_memory is None else PINNABLE_SHARE * self.host_memory
