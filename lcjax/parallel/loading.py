"""The parts of arrays that a process reads from a file, and their place on its devices.

A matrix is cut by rows, so that each device has some of them (`lcjax.parallel.weights`). A process
reads only the rows of its own devices. An array that is not cut is read once by every process and
copied to each of its devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding

from lcjax.config.parallel.mesh import MeshShape
from lcjax.parallel.memories import PINNED
from lcjax.parallel.placement import pinned_here
from lcjax.parallel.weights import is_cut, spec_of

_EXCHANGED_BYTES = 2**25


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a tensor that the devices of this process have.

    Attributes:
      parts: ascending ranges of rows, each of one device or of several.
      of_processes: the parts of every process, in their order, of equal size in sum; None if this
        process has all rows.
    """

    parts: tuple[slice, ...]
    of_processes: tuple[tuple[slice, ...], ...] | None = None

    def join(self, own: Sequence[np.ndarray]) -> np.ndarray:
        """All rows of an array on the host, of which this process has those in `parts`.

        If processes have different rows, they exchange them: all of them must call this.
        """
        rows = np.concatenate(own)
        if self.of_processes is None:
            return rows
        places = [np.concatenate([np.arange(part.start, part.stop) for part in parts]) for parts in self.of_processes]
        whole = np.empty((max(of_process.max() for of_process in places) + 1, *rows.shape[1:]), rows.dtype)
        for chunk in _chunks(rows):
            found = multihost_utils.process_allgather(rows[chunk])
            for of_process, values in zip(places, found, strict=True):
                whole[of_process[chunk]] = values
        return whole


def _chunks(rows: np.ndarray) -> Iterator[slice]:
    """Rows that processes exchange at a time: each device has those of all processes."""
    step = max(1, _EXCHANGED_BYTES * len(rows) // max(rows.nbytes, 1))
    return (slice(start, start + step) for start in range(0, len(rows), step))


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where an array goes that is read from a file.

    Attributes:
      shape, dtype: of the whole array.
      sharding: on the devices of a mesh, or in the memory of one device; None for the default
        device.
      axis: the axis of the rows, if it is cut.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    sharding: Any = None
    axis: int | None = None

    @classmethod
    def of(
        cls, shape: MeshShape, mesh: Any, path: Sequence[str], array: jax.ShapeDtypeStruct, *, on_host: bool
    ) -> Destination:
        """The destination of a leaf at `path` in a tree of parameters.

        Args:
          shape, mesh: of the devices; `mesh` None means one device.
          path: the keys of the leaf.
          on_host: in pinned host memory.
        """
        if mesh is None:
            return cls(array.shape, array.dtype, pinned_here() if on_host else None)
        keys = [jax.tree_util.DictKey(key) for key in path]
        kind = PINNED if on_host else None
        sharding = NamedSharding(mesh, spec_of(shape, keys, array), memory_kind=kind)
        return cls(array.shape, array.dtype, sharding, array.ndim - 2 if is_cut(shape, keys, array) else None)

    def rows(self) -> Rows | None:
        """The rows that this process has; None if it has the whole array."""
        return None if self.axis is None else rows_of(self.sharding, self.shape, self.axis)

    def part_shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the arrays that `put` needs: one for each part of `rows`, or the whole."""
        rows = self.rows()
        if rows is None:
            return [self.shape]
        before, after = self.shape[: self.axis], self.shape[self.axis + 1 :]  # pyright: ignore[reportOptionalOperand]
        return [(*before, part.stop - part.start, *after) for part in rows.parts]

    def put(self, parts: Sequence[np.ndarray]) -> jax.Array:
        """The array on its devices, from what this process has of it.

        On a CPU its devices use these buffers. Other devices get a copy one after the other, since
        the copies of all at once would need as many buffers of pinned memory.
        """
        if not isinstance(self.sharding, NamedSharding):
            return _copied(parts[0], self.sharding)
        copies, rows = [], self.rows()
        for device, index in self.sharding.addressable_devices_indices_map(self.shape).items():
            part = parts[0] if rows is None else parts[rows.parts.index(_range(index, self.shape, self.axis))]
            copies.append(_copied(part, SingleDeviceSharding(device, memory_kind=self.sharding.memory_kind)))
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, copies)


def rows_of(sharding: Sharding, shape: tuple[int, ...], axis: int) -> Rows:
    """The rows, along `axis`, of an array that is cut along it."""
    of_processes: dict[int, set[tuple[int, int]]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        part = _range(index, shape, axis)
        of_processes.setdefault(device.process_index, set()).add((part.start, part.stop))
    parts = {process: tuple(slice(*pair) for pair in sorted(pairs)) for process, pairs in of_processes.items()}
    own = parts[jax.process_index()]
    return Rows(own, None if all(part == own for part in parts.values()) else tuple(parts[i] for i in sorted(parts)))


def _range(index: Any, shape: tuple[int, ...], axis: int | None) -> slice:
    assert axis is not None
    return slice(*index[axis].indices(shape[axis])[:2])


def _copied(buffer: np.ndarray, sharding: Any) -> jax.Array:
    # Wait, so that the next buffer is not filled while this one is still being copied to an
    # accelerator.
    return jax.device_put(buffer, sharding, may_alias=True).block_until_ready()
