"""Loads a model's weights in a thread while the run's data is read.

Reading files and copying to devices leave the Python interpreter to other threads most of the time.
"""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from numpy.typing import DTypeLike

from lcjax import api
from lcjax.config import MemorySettings
from lcjax.config.policies import check_policy
from lcjax.parallel.devices import ON_ONE, Devices
from lcjax.plan.choosing.budget import budget_here
from lcjax.train.arguments import RunArguments
from lcjax.train.devices import mesh_of
from lcjax.train.refusals import check_attention_here
from lcjax.weights import Checkpoint


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the weights of a run go when they are loaded.

    Attributes:
      embeddings_on_host: embedding and head are in pinned host memory, until it is known whether
        they fit on the device.
      devices: each has its part of the weights.
    """

    embeddings_on_host: bool
    devices: Devices

    @classmethod
    def of(cls, checkpoint: Checkpoint, arguments: RunArguments) -> Placement:
        """The placement for a run; starts JAX's devices.

        Raises:
          InputError: the devices cannot run what the arguments request.
        """
        check_attention_here(checkpoint.config, arguments)
        mesh = mesh_of(
            checkpoint.config,
            arguments,
            max_seq_length=arguments.max_seq_length,
            weights_bytes=checkpoint.weights_bytes(api.resolve_dtype(arguments.dtype), arguments.quantize),
            trains_every_weight=arguments.full_finetuning,
            attention=arguments.attention,
        )
        check_policy(arguments.use_gradient_checkpointing, mesh.local_tokens(arguments.max_seq_length))
        memory = arguments.execution_request.memory
        waits = budget_here() is not None and arguments.memory == "auto" and not arguments.full_finetuning
        requested = isinstance(memory, MemorySettings) and memory.embeddings_on_host
        return cls(waits or requested, Devices.of(mesh))


class EarlyWeights:
    """A context in which a thread loads weights before they are needed; the thread ends with it.

    The thread prints nothing. Its errors are raised when the weights are asked for.
    """

    def __init__(self):
        self._ends = threading.Event()
        self._threads = ThreadPoolExecutor(1, "weights")

    def __enter__(self) -> EarlyWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._threads.shutdown()

    def started(self, checkpoint: Checkpoint, arguments: RunArguments) -> Checkpoint:
        """Starts to load; returns the same checkpoint, whose `load` waits for the thread."""

        def packed(name):
            if self._ends.is_set():
                raise _NotNeeded
            return checkpoint.packed(name)

        def load():
            placement = Placement.of(checkpoint, arguments)
            request = _Request(
                api.resolve_dtype(arguments.dtype), arguments.quantize, placement.embeddings_on_host, placement.devices
            )
            return request, request.load(dataclasses.replace(checkpoint, packed=packed))

        fields = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(Checkpoint)}
        return _LoadedEarly(**fields, early=[self._threads.submit(load)])


class _NotNeeded(Exception):
    """The run has ended, so no more weights are read."""


@dataclasses.dataclass(frozen=True)
class _Request:
    """The arguments of `Checkpoint.load`."""

    dtype: Any
    quantize: str | None
    embeddings_on_host: bool
    devices: Devices

    def load(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return checkpoint.load(
            self.dtype, self.quantize, embeddings_on_host=self.embeddings_on_host, devices=self.devices
        )


@dataclasses.dataclass(frozen=True)
class _LoadedEarly(Checkpoint):
    """A checkpoint whose weights a thread loads; `early` is empty once they were taken."""

    early: list[Future[tuple[_Request, dict[str, Any]]]] = dataclasses.field(default_factory=list)

    def load(
        self,
        dtype: DTypeLike,
        quantize: str | None = None,
        *,
        embeddings_on_host: bool = False,
        devices: Devices = ON_ONE,
    ) -> dict[str, Any]:
        requested = _Request(dtype, quantize, embeddings_on_host, devices)
        while self.early:
            # Nothing else refers to the weights then: training every weight replaces them.
            request, params = self.early.pop().result()
            if request == requested:
                return params
        return super().load(dtype, quantize, embeddings_on_host=embeddings_on_host, devices=devices)
