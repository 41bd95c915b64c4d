"""What is compiled and measured: everything of a run but its settings, which are what is chosen."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Sharding

from lcjax.config import LlamaConfig, LoraConfig
from lcjax.config.training import TrainingArguments
from lcjax.model import ModelSettings
from lcjax.ops.nf4 import is_quantized
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
    """A run on a GPU, which need not be here.

    Attributes:
      params: the model's weights, or ShapeDtypeStructs; where they have shardings, the step is compiled for those devices.
      lora: the adapter, the only part that learns; None where every weight does.
      embeddings_may_be_on_host: whether embedding and head may be in host memory.
      gpu: the name by which the step's time is estimated.
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

        Embedding and head stay where they are: elsewhere, the caller's model would be a second copy on the device.
        """
        on_host = is_on_host(params["embed_tokens"]["weight"])
        return cls(config, params, arguments, lora, embeddings_may_be_on_host=lora is not None and on_host)

    @classmethod
    def of(cls, workload: Workload, sharding: Sharding | None = None) -> Run:
        """The run of a workload, its weights placed by `sharding`; without one it cannot be compiled."""
        params = abstract_params(workload.config, workload.lora, workload.quantize)
        if sharding is not None:
            params = abstract(params, sharding)
        frozen = workload.lora is not None
        return cls(workload.config, params, workload.training, workload.lora, frozen, workload.gpu)

    @property
    def sequences(self) -> int:
        """Rows that are on the device at once."""
        return self.arguments.per_device_train_batch_size

    @property
    def quantized(self) -> bool:
        return is_quantized(self.params["layers"]["mlp"]["up_proj"]["weight"])

    def program(self, params: Tree, settings: ModelSettings, max_steps: int = 1) -> Program:
        """What the trainer computes with `params`. The number of steps is in the schedule's constants alone."""
        return build_program(self.config, params, settings, self.arguments, max_steps)

    def seconds(self, settings: ModelSettings) -> float:
        """The estimated time of a step over one sequence."""
        rank = self.lora.r if self.lora else 0
        return step_seconds(self.config, settings, lora_r=rank, quantized=self.quantized, gpu=self.gpu)

    def host_arrays(self, settings: ModelSettings) -> list[HostArray]:
        """What a step keeps in host memory from its forward to its backward pass, or throughout."""
        dtype = self.params["embed_tokens"]["weight"].dtype
        return host_arrays(self.config, settings, dtype, self.sequences)

    def pinned_bytes(self, settings: ModelSettings) -> int:
        """Host memory that a step takes at most; nothing is compiled."""
        return pinned_bytes(self.host_arrays(settings), self._host_state_bytes)

    @functools.cached_property
    def _host_state_bytes(self) -> int:
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.params)
        # Any settings do; what "auto" stands for would be asked of JAX's devices, which must not start yet.
        settings = ModelSettings(LENGTH_STEP, lora=self.lora, attention="xla", memory="none")
        return self.program(shapes, settings).host_state_bytes
