"""What is compiled and measured: a run without its memory settings, which are chosen for it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Sharding

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.config.training import TrainingArguments
from lcjax.model import ModelSettings
from lcjax.ops.four_bits import has_quantized
from lcjax.parallel.memories import is_on_host
from lcjax.plan.choosing.cost import step_seconds
from lcjax.plan.choosing.search import LENGTH_STEP
from lcjax.plan.compiling.aot import abstract
from lcjax.plan.compiling.offload import HostArray, host_arrays, pinned_bytes
from lcjax.plan.compiling.parameters import abstract_params
from lcjax.plan.workload import Workload
from lcjax.step.program import Program, build_program

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run on a GPU, which this machine need not have.

    Attributes:
      config: the model's configuration.
      params: the model's weights, or ShapeDtypeStructs. If they have shardings, the step is
        compiled for those devices.
      arguments: the arguments of training.
      lora: the adapter, the only part that is trained; None if every weight is trained.
      embeddings_may_be_on_host: whether embedding and head may be in host memory.
      gpu: the GPU for which the step's time is estimated.
    """

    config: LlamaConfig
    params: Tree
    arguments: TrainingArguments
    lora: LoraConfig | None
    embeddings_may_be_on_host: bool
    gpu: str = "h100-80gb"

    @classmethod
    def here(cls, config: LlamaConfig, params: Tree, arguments: TrainingArguments, lora: LoraConfig | None) -> Run:
        """The run of a model whose weights are loaded.

        Embedding and head stay where they are. If they moved to host memory, the caller's model
        would still have them on the device.
        """
        on_host = is_on_host(params["embed_tokens"]["weight"])
        return cls(config, params, arguments, lora, embeddings_may_be_on_host=lora is not None and on_host)

    @classmethod
    def of(cls, workload: Workload, sharding: Sharding | None = None) -> Run:
        """The run of a workload, its weights placed by `sharding`; None if it is not compiled."""
        params = abstract_params(workload.config, workload.lora, workload.quantize)
        if sharding is not None:
            params = abstract(params, sharding)
        frozen = workload.lora is not None
        return cls(workload.config, params, workload.training, workload.lora, frozen, workload.gpu)

    @property
    def sequences(self) -> int:
        """The number of rows in a micro-batch on one device."""
        return self.arguments.per_device_train_batch_size

    @property
    def quantized(self) -> bool:
        return has_quantized(self.params)

    def program(self, params: Tree, settings: ModelSettings, max_steps: int = 1) -> Program:
        """The program that the trainer runs with `params`.

        `max_steps` affects only the constants of the learning rate's schedule.
        """
        return build_program(self.config, params, settings, self.arguments, max_steps)

    def seconds(self, settings: ModelSettings) -> float:
        """The estimated seconds of a step over one sequence."""
        rank = self.lora.r if self.lora else 0
        return step_seconds(self.config, settings, lora_r=rank, quantized=self.quantized, gpu=self.gpu)

    def host_arrays(self, settings: ModelSettings) -> list[HostArray]:
        """The arrays in host memory: until the backward pass, or for the whole step."""
        dtype = self.params["embed_tokens"]["weight"].dtype
        return host_arrays(self.config, settings, dtype, self.sequences)

    def pinned_bytes(self, settings: ModelSettings) -> int:
        """An upper bound of the bytes of host memory that a step pins; compiles nothing."""
        return pinned_bytes(self.host_arrays(settings), self._host_state_bytes // settings.execution.mesh.shards)

    @functools.cached_property
    def _host_state_bytes(self) -> int:
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.params)
        settings = ModelSettings(LENGTH_STEP, lora=self.lora)  # any settings do
        return self.program(shapes, settings).host_state_bytes
