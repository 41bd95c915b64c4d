"""A run to plan, without its sequence length."""

from __future__ import annotations

import dataclasses

import jax

from lcjax.config import ALL_LINEAR, ExecutionRequest, LlamaConfig, LoraConfig, parse_memory, target_modules_of
from lcjax.config.parallel.mesh import MeshRequest, MeshShape
from lcjax.config.precision import check_quantize
from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError
from lcjax.model.lora import check_targets
from lcjax.ops.attention.registry import check_implementation
from lcjax.plan.choosing.search import LENGTH_STEP
from lcjax.plan.compiling.aot import gpu_memory_bytes
from lcjax.plan.compiling.parameters import abstract_params
from lcjax.step import Hardware, resolve_mesh


@dataclasses.dataclass(frozen=True)
class Workload:
    """A run with bfloat16 weights, as `lcjax.train` does it on a GPU.

    Args:
      model: the model's name as the user wrote it.
      config: the model's configuration.
      gpu: one of `lcjax.plan.compiling.aot.gpu_names()`.
      lora_r: rank of the adapter; 0 trains every weight.
      quantize: None or "nf4".
      use_gradient_checkpointing, memory, loss_chunk, attention, optimizer_memory: as in
        `lcjax.train`.
      gpus: number of GPUs in each host.
      hosts: number of hosts.
      mesh: how the GPUs share the work; by default all of them share the sequence.
      target_modules: the linear maps of a layer that have an adapter.
      per_device_train_batch_size: sequences on a device at once.
      gradient_accumulation_steps: micro-batches of a step; None for one in each group of GPUs that
        share a sequence.

    Raises:
      InputError: an unknown name, a value out of range, or `quantize` without an adapter.
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
    mesh: MeshRequest = dataclasses.field(default_factory=MeshRequest)
    target_modules: tuple[str, ...] = (ALL_LINEAR,)
    per_device_train_batch_size: int = 1
    gradient_accumulation_steps: int | None = None

    def __post_init__(self):
        if self.lora_r < 0:
            raise InputError(f"--lora-r {self.lora_r} is out of range; it must be positive, or 0 to train every weight")
        check_quantize(self.quantize)
        parse_memory(self.memory)
        if self.target_modules != (ALL_LINEAR,) and not self.lora_r:
            raise InputError(
                f"--target-modules {' '.join(self.target_modules)} and --lora-r 0 contradict each other: without an adapter "
                "every weight is trained; omit one of them"
            )
        if self.quantize is not None and not self.lora_r:
            raise InputError(
                f"--quantize {self.quantize} and --lora-r 0 contradict each other: quantized weights cannot be trained"
            )
        if (experts := self.config.family.experts(self.config)) and experts.stored_format and not self.lora_r:
            raise InputError(
                f"--lora-r 0 trains every weight, and the experts of {self.model} are in {experts.stored_format}: "
                "convert the model to bfloat16 with lcjax.convert, and give its directory"
            )
        check_targets(self.config, target_modules_of(self.config.family, self.target_modules), lora_dropout=0.0)
        if self.gpus < 1 or self.hosts < 1:
            raise InputError(f"--gpus {self.gpus} and --hosts {self.hosts} must both be at least 1")
        check_implementation(self.attention)
        _ = self.training

    @property
    def training(self) -> TrainingArguments:
        """The run's arguments."""
        return TrainingArguments(
            optimizer_memory=self.optimizer_memory,
            per_device_train_batch_size=self.per_device_train_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps or self.mesh.data_parallel_size or 1,
        )

    @property
    def rows(self) -> int:
        """The number of sequences of a step, in one group of GPUs that share a sequence."""
        return self.training.per_device_train_batch_size * self.training.gradient_accumulation_steps

    def mesh_for(self, tokens: int) -> MeshShape:
        """How the GPUs share sequences of `tokens` tokens.

        Raises:
          InputError: they cannot, or not as requested.
        """
        params = abstract_params(self.config, None, self.quantize)
        return resolve_mesh(
            self.mesh,
            self.config,
            Hardware(self.gpus * self.hosts, self.gpus, gpu_memory_bytes(self.gpu)),
            max_seq_length=tokens,
            micro_batches=self.training.gradient_accumulation_steps,
            weights_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)),
            trains_every_weight=self.lora is None,
            attention=self.attention,
        )

    @property
    def length_step(self) -> int:
        """Tokens that divide every length, so that each part has a multiple of 1,024 tokens."""
        return LENGTH_STEP * self._usual_mesh.parts

    @property
    def context(self) -> int:
        """The number of GPUs that share a sequence."""
        return self._usual_mesh.context

    @property
    def _usual_mesh(self) -> MeshShape:
        return self.mesh_for(LENGTH_STEP * 2 * self.gpus * self.hosts)

    @property
    def execution_request(self) -> ExecutionRequest:
        """What is requested of the model's execution."""
        return ExecutionRequest(
            self.attention, self.use_gradient_checkpointing, parse_memory(self.memory), self.loss_chunk
        )

    @property
    def lora(self) -> LoraConfig | None:
        """The adapter's configuration, as `lcjax.train` makes it; None to train every weight."""
        modules = target_modules_of(self.config.family, self.target_modules)
        return LoraConfig(self.lora_r, target_modules=modules) if self.lora_r else None

    @property
    def weights(self) -> str:
        """The format of the frozen weights."""
        experts = self.config.family.experts(self.config)
        of_experts = experts.stored_format if experts else None
        return (self.quantize or "bfloat16") + (f", experts in {of_experts}" if of_experts else "")

    def describe(self) -> str:
        """Model, weights and adapter, for a title."""
        trained = f"LoRA r={self.lora_r}" if self.lora_r else "full fine-tuning"
        return f"{self.model}, {self.weights}, {trained}"
