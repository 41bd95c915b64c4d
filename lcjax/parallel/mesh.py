"""The mesh of devices, and which part of a batch each device has.

Shapes: A micro-batches per step, B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lcjax.config.mesh import AXES, CONTEXT, DATA, MeshShape

STEP_SPEC = PartitionSpec(DATA, None, CONTEXT)
"""The parts of arrays [A, B, T]: micro-batches along `data`, tokens along the context."""

ROWS_SPEC = PartitionSpec(None, CONTEXT)
"""The parts of arrays [B, T]: every device along `data` has all of them."""


def device_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of the first devices; all devices of JAX if None.

    Devices of a process are adjacent, so those along `heads`, which communicate most, share a host.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=lambda x: (x.process_index, x.id))
    return Mesh(np.reshape(devices[: shape.size], (shape.data, shape.ring, shape.heads)), AXES)


def replicated(mesh: Mesh, memory_kind: str | None = None) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec(), memory_kind=memory_kind)


def token_order(shape: MeshShape, tokens: int) -> np.ndarray | None:
    """The index in the sequence of each token in the order of the devices; None for the same order.

    Each device along `ring` has two of the `2 ring` equal pieces of the sequence; see
    `lcjax.ops.attention.parallel.ring`.
    """
    if shape.ring == 1:
        return None
    pieces = np.arange(tokens).reshape(shape.pieces, -1)
    return np.concatenate([pieces[[r, shape.pieces - 1 - r]].reshape(-1) for r in range(shape.ring)])


def over_mesh(function: Callable[..., Any], mesh: Mesh | None, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """The function, which every device then calls with its own parts; unchanged for one device.

    Every axis is manual: a device computes with its own tokens, and only attention and sums at the
    end communicate. If XLA divided a step by itself, it would gather the whole sequence on every
    device.
    """
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def divided(batch: dict[str, Any], shape: MeshShape, mesh: Mesh | None) -> dict[str, Any]:
    """Arrays [A, B, T] on the devices of a mesh, tokens in the order of `token_order`."""
    if mesh is None:
        return batch
    order = token_order(shape, next(iter(batch.values())).shape[-1])
    sharding = NamedSharding(mesh, STEP_SPEC)

    def on_devices(x: np.ndarray) -> jax.Array:
        x = np.asarray(x) if order is None else np.asarray(x)[..., order]
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return {name: on_devices(x) for name, x in batch.items()}
