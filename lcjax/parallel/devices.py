"""The devices of a run: the mesh that they form, and which part of the arrays each has.

Shapes: A micro-batches per step, B sequences, T tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from lcjax.config.parallel.mesh import AXES, CONTEXT, DATA, HEADS, ONE_DEVICE, MeshShape
from lcjax.parallel.host_blocks import host_blocks
from lcjax.parallel.loading import Destination
from lcjax.parallel.weights import spec_of

Arrays = dict[str, Any]
Tree = TypeVar("Tree")

_BLOCK_BYTES = 2**25

WHOLE = PartitionSpec()
"""An array of which every device has a copy."""

STEP = PartitionSpec(DATA, None, CONTEXT)
"""Arrays [A, B, T] of a step: micro-batches along `data`, tokens along the context."""

CACHE = PartitionSpec(None, None, None, HEADS)
"""Keys and values [L, B, S, K, d] of a cache, the heads along `heads`."""


def rows(axes: int) -> PartitionSpec:
    """Arrays [..., T] with `axes` axes: tokens along the context, and all rows along `data`."""
    return PartitionSpec(*[None] * (axes - 1), CONTEXT)


@dataclasses.dataclass(frozen=True)
class Devices:
    """Devices that share the work of a run.

    Attributes:
      shape: the sizes of the mesh.
      mesh: the devices; None for one device, where nothing is divided.
    """

    shape: MeshShape = ONE_DEVICE
    mesh: Mesh | None = None

    @classmethod
    def of(cls, shape: MeshShape, devices: Sequence[Any] | None = None) -> Devices:
        """The first of the given devices, or of all devices of JAX.

        Devices of a process are adjacent, so those along `heads`, which communicate most, share a
        host.
        """
        if shape.size == 1:
            return cls()
        ordered = sorted(jax.devices() if devices is None else devices, key=lambda x: (x.process_index, x.id))
        sizes = shape.data, shape.ring, shape.heads
        return cls(shape, Mesh(np.reshape(ordered[: shape.size], sizes), AXES))

    def over(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """The function as every device calls it with its own parts; the same for one device.

        Every axis is manual: a device computes with its own tokens, and only attention and sums at
        the end communicate. If XLA divided a step by itself, it would gather the whole sequence on
        every device.
        """
        if self.mesh is None:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def zeros(self, shape: tuple[int, ...], dtype: Any, spec: PartitionSpec) -> jax.Array:
        """An array of zeros of which each device has the part that `spec` says."""
        where = None if self.mesh is None else NamedSharding(self.mesh, spec)
        return jnp.zeros(shape, dtype, device=where)

    def destination(self, path: Sequence[str], array: jax.ShapeDtypeStruct, *, on_host: bool = False) -> Destination:
        """Where a parameter goes that is read from a file; to pinned host memory with `on_host`."""
        return Destination.of(self.shape, self.mesh, path, array, on_host=on_host)

    @property
    def cut_between_processes(self) -> bool:
        """Whether processes have different rows of the weights.

        The devices of a process are adjacent, so with enough of them they have all rows.
        """
        return self.mesh is not None and self.shape.shards > len(self.mesh.local_devices)

    def distribute(self, tree: Tree) -> Tree:
        """Parameters, or the state of a step, on the devices: each has its part of every array.

        Each array stays in the kind of memory where it is. Arrays that are there already are not
        copied.
        """
        if self.mesh is None:
            return tree
        mesh = self.mesh

        def place(path: Any, leaf: jax.Array) -> jax.Array:
            kind = leaf.sharding.memory_kind
            sharding = NamedSharding(mesh, spec_of(self.shape, path, leaf), memory_kind=kind)
            if leaf.sharding == sharding:
                return leaf
            if leaf.sharding.device_set == set(mesh.devices.flat):
                return jax.device_put(leaf, sharding)
            # Every process has all of the array, and copies to its own devices what they need.
            parts = sharding.addressable_devices_indices_map(leaf.shape)
            copies = [
                jax.device_put(leaf if sharding.is_fully_replicated else leaf[index], _in_memory(device, kind))
                for device, index in parts.items()
            ]
            return jax.make_array_from_single_device_arrays(leaf.shape, sharding, copies)

        return jax.tree.map_with_path(place, tree)

    def collect(self, tree: Tree) -> Tree:
        """The whole arrays, for what follows a run.

        Those of which every device has a copy are on the first device of this process. Others are
        in host memory, since all of them together may be larger than a device.
        """
        if self.mesh is None:
            return tree

        def whole(leaf: jax.Array) -> Any:
            if leaf.is_fully_replicated:
                return leaf.addressable_data(0)
            array, start = np.empty(leaf.shape, leaf.dtype), 0
            for block in host_blocks(leaf, max(1, _BLOCK_BYTES * leaf.shape[0] // leaf.nbytes)):
                values = block()
                array[start : start + len(values)] = values
                start += len(values)
            return array

        return jax.tree.map(whole, tree)

    def place(self, arrays: Arrays, spec: PartitionSpec) -> Arrays:
        """Arrays whose tokens are in the order of the devices, each device's part on it."""
        if self.mesh is None:
            return arrays
        sharding = NamedSharding(self.mesh, spec)

        def on_devices(x: np.ndarray) -> jax.Array:
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return {name: on_devices(x) for name, x in arrays.items()}

    def in_order(self, x: Any) -> Any:
        """An array [..., T] with its tokens in the order of the devices."""
        order = token_order(self.shape, np.shape(x)[-1])
        return x if order is None else np.asarray(x)[..., order]

    def divide_step(self, batch: Arrays) -> Arrays:
        """Arrays [A, B, T] of a step, each device's part on it."""
        return self.place(self._in_order(batch), STEP)

    def divide_rows(self, batch: Arrays) -> Arrays:
        """Arrays [..., T], for which all devices along `data` compute the same."""
        return self.place(self._in_order(batch), rows(next(iter(batch.values())).ndim))

    def _in_order(self, batch: Arrays) -> Arrays:
        return batch if self.mesh is None else {name: self.in_order(x) for name, x in batch.items()}


def _in_memory(device: Any, kind: str | None) -> SingleDeviceSharding:
    return SingleDeviceSharding(device, memory_kind=kind)


ON_ONE = Devices()
"""The first device alone."""


def token_order(shape: MeshShape, tokens: int) -> np.ndarray | None:
    """The index in the sequence of each token in the order of the devices; None for the same order.

    Each device along `ring` has two of the `2 ring` equal pieces of the sequence; see
    `lcjax.ops.attention.parallel.ring`.
    """
    if shape.ring == 1:
        return None
    pieces = np.arange(tokens).reshape(shape.pieces, -1)
    return np.concatenate([pieces[[r, shape.pieces - 1 - r]].reshape(-1) for r in range(shape.ring)])
