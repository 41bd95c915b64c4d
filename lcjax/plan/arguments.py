"""The flags of `python -m lcjax.plan`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lcjax.cli.outputs import check_outputs
from lcjax.config import LoraConfig
from lcjax.config.rope import LONGEST
from lcjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class PlanArguments:
    """Whether a fine-tuning run fits a GPU, without the GPU: compiles the step that lcjax.train runs and reads its memory off.

    Exits with 0 where it fits, 1 where it does not, 2 where the question is wrong. Examples:

      python -m lcjax.plan --model llama-3.1-8b --gpu h100-80gb --max-seq-length 131072 --quantize nf4 --lora-r 32
      python -m lcjax.plan --model llama-3.1-8b --gpu rtx4090 --quantize nf4 --find-max
      python -m lcjax.plan --model path/of/config.json --table
    """

    model: str
    """A preset such as llama-3.1-8b, a config.json, or a directory that has one."""
    gpu: str = "h100-80gb"
    """A name in lcjax/plan/targets, e.g. rtx4090, a100-40gb, h100-80gb, h200."""
    max_seq_length: int | None = None
    """Tokens of context; the model's trained context when not given."""
    quantize: str | None = None
    """nf4 keeps the frozen weights in four bits; bfloat16 when not given."""
    lora_r: int = LoraConfig.r
    """Rank of the adapter; 0 trains every weight."""
    use_gradient_checkpointing: str = "auto"
    """auto, none, full, offload (or unsloth), offload_attn."""
    memory: str = "auto"
    """As in lcjax.train: auto (tiles above 32,768 tokens), none, or by hand, e.g. head_groups=8,fetch_ahead=false,save_every=2."""
    loss_chunk: int | None = None
    """As in lcjax.train: tokens whose logits exist at a time."""
    attention: str = "auto"
    """Implementation of attention: auto (pallas), pallas, cudnn, fa3 or xla."""
    optimizer_memory: str = "auto"
    """As in lcjax.train: auto (host where every weight learns), device or host."""
    vram_gb: float | None = None
    """Plan for a GPU of that kind sold with so many GB."""
    host_gb: float | None = None
    """GiB of host memory that may be pinned; any amount when not given."""
    find_max: bool = False
    """Search the longest context that fits, in multiples of 1,024."""
    table: bool = False
    """The longest context on every GPU."""
    json: str | None = None
    """Write the plan as JSON to this file, or to standard output for -."""
    plot: Path | None = None
    """Draw memory over context length to this .png."""
    gpus: int = 1
    """GPUs a host; each holds the whole run, sharding is to come."""
    hosts: int = 1
    """Hosts."""

    def __post_init__(self):
        for flag, value in (("--vram-gb", self.vram_gb), ("--host-gb", self.host_gb)):
            if value is not None and not value > 0:
                raise InputError(f"{flag} {value} is out of range; it must be positive")
        if self.max_seq_length is not None and not 2 <= self.max_seq_length <= LONGEST:
            raise InputError(
                f"--max-seq-length {self.max_seq_length} is out of range; it must be from 2 to {LONGEST:,}"
            )
        if (self.find_max or self.table) and self.max_seq_length is not None:
            searching = "--find-max" if self.find_max else "--table"
            raise InputError(f"{searching} searches the length and --max-seq-length gives one; drop one of them")
        if self.table and (self.find_max or self.vram_gb or self.plot):
            raise InputError("--table searches every GPU as it is; drop --find-max, --vram-gb and --plot")
        check_outputs([self.model], json=self.json, plot=self.plot)
