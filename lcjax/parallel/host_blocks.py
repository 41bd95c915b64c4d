"""Blocks of arrays on the host, wherever the devices are that have the arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from lcjax.parallel.loading import rows_of


def host_blocks(leaf: jax.Array, rows: int) -> Iterator[Callable[[], np.ndarray]]:
    """Functions that return the blocks of `rows` rows along the first axis, in their order.

    Threads may call them at the same time. An array in device memory is never copied as a whole
    there: a block is read from the devices that have its parts. If no device of this process has
    some of the parts, the processes exchange them while the functions are made, one block at a
    time, and all processes must make them.
    """
    if not (leaf.is_fully_replicated or leaf.is_fully_addressable):
        yield from _exchanged(leaf, rows)
        return
    parts = [(index, _readable(part)) for index, part in _different_parts(leaf)]
    for first in range(0, leaf.shape[0], rows):
        block = slice(first, min(first + rows, leaf.shape[0]))
        yield lambda block=block: _block(leaf, parts, block)


def _block(leaf: jax.Array, parts, block: slice) -> np.ndarray:
    found = []
    for index, part in parts:
        start, stop, _ = index[0].indices(leaf.shape[0])
        first, last = max(start, block.start), min(stop, block.stop)
        if first < last:
            found.append((first, last, index[1:], _rows(part, first - start, last - first)))
    if len(found) == 1:
        return found[0][-1]
    whole = np.empty((block.stop - block.start, *leaf.shape[1:]), leaf.dtype)
    for first, last, others, values in found:
        whole[(slice(first - block.start, last - block.start), *others)] = values
    return whole


def _exchanged(leaf: jax.Array, rows: int) -> Iterator[Callable[[], np.ndarray]]:
    assert isinstance(leaf.sharding, NamedSharding)
    axis = next(axis for axis, name in enumerate(leaf.sharding.spec) if name is not None)
    cut = rows_of(leaf.sharding, leaf.shape, axis)
    parts = sorted(_different_parts(leaf), key=lambda part: part[0][axis].indices(leaf.shape[axis]))
    own = [_readable(part) for _, part in parts]
    whole = cut.join([np.asarray(part) for part in own]) if axis == 0 else None
    for first in range(0, leaf.shape[0], rows):
        count = min(rows, leaf.shape[0] - first)
        if whole is not None:
            block = whole[first : first + count]
        else:
            block = cut.join([np.moveaxis(_rows(part, first, count), axis, 0) for part in own])
            block = np.moveaxis(block, 0, axis)
        yield lambda block=block: block


def _different_parts(leaf: jax.Array) -> list[tuple[Any, Any]]:
    """(index, array) of each part that this process has; devices may have the same one."""
    return list({str(shard.index): (shard.index, shard.data) for shard in leaf.addressable_shards}.values())


def _readable(part: jax.Array) -> jax.Array | np.ndarray:
    """The array, or its values on the host if it is there, in pinned memory or on a CPU."""
    on_device = part.sharding.memory_kind == "device" and next(iter(part.devices())).platform != "cpu"
    return part if on_device else np.asarray(part)


def _rows(part: jax.Array | np.ndarray, first: int, count: int) -> np.ndarray:
    if isinstance(part, np.ndarray):
        return part[first : first + count]
    return np.asarray(lax.dynamic_slice_in_dim(part, first, count))
