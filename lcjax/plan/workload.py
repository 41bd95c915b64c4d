"""What is planned: a run, but for its length."""

from __future__ import annotations

import dataclasses

from lcjax.config import LlamaConfig, LoraConfig, parse_memory
from lcjax.config.precision import check_quantize
from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError
from lcjax.ops.attention.registry import resolve_implementation


@dataclasses.dataclass(frozen=True)
class Workload:
    """One sequence a step of bfloat16 weights, as `lcjax.train` runs it on a GPU.

    Args:
      model: what the user calls it.
      config: its shape.
      gpu: a name of `lcjax.plan.compiling.aot.gpu_names`, `gpus` of it in each of `hosts` machines.
      lora_r: rank of the adapter on all seven linear maps of a layer; 0 trains every weight.
      quantize: None or "nf4".
      use_gradient_checkpointing, memory, loss_chunk, attention, optimizer_memory: as in `lcjax.train`.

    Raises:
      InputError: an unknown name, a value out of range, or quantized weights that are to be trained.
    """

    model: str
    config: LlamaConfig
    gpu: str
    lora_r: int = LoraConfig.r
    quantize: str | None = None
    use_gradient_checkpointing: str = "auto"
    memory: str = "auto"
    loss_chunk: int | None = None
    attention: str = "auto"
    optimizer_memory: str = "auto"
    gpus: int = 1
    hosts: int = 1

    def __post_init__(self):
        if self.lora_r < 0:
            raise InputError(f"--lora-r {self.lora_r} is out of range; it must be positive, or 0 to train every weight")
        check_quantize(self.quantize)
        parse_memory(self.memory)
        if self.quantize is not None and not self.lora_r:
            raise InputError(
                f"--quantize {self.quantize} and --lora-r 0 contradict each other: quantized weights cannot be trained"
            )
        if self.gpus < 1 or self.hosts < 1:
            raise InputError(f"--gpus {self.gpus} and --hosts {self.hosts} must both be at least 1")
        resolve_implementation(self.attention)
        _ = self.training

    @property
    def training(self) -> TrainingArguments:
        """The arguments of the run."""
        return TrainingArguments(optimizer_memory=self.optimizer_memory)

    @property
    def lora(self) -> LoraConfig | None:
        """The adapter, as `lcjax.train` makes it."""
        return LoraConfig(self.lora_r) if self.lora_r else None

    def describe(self) -> str:
        """Model, weights and adapter in words."""
        learns = f"LoRA r={self.lora_r}" if self.lora_r else "full fine-tuning"
        return f"{self.model}, {self.quantize or 'bfloat16'}, {learns}"
