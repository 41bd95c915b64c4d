"""What loading shares between formats: checks of names and shapes, and stacking of layers."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from lcjax.config import EMBEDDING_MODULES, LlamaConfig
from lcjax.errors import InputError
from lcjax.model.params import TensorName, tensor_names
from lcjax.parallel.devices import ON_ONE, Devices
from lcjax.parallel.loading import Rows
from lcjax.parallel.processes import together
from lcjax.weights.packing import Packer, Packing, Parts, Path, TensorReader, at_once, one_array, quantizing
from lcjax.weights.packing import Shape as Shape

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

# For each dtype: the unsigned integer of its size, and the mask of its exponent bits. All exponent
# bits are set only in NaN and infinity.
_EXPONENTS = {
    np.dtype(np.float32): (np.uint32, np.uint32(0x7F800000)),
    np.dtype(np.float16): (np.uint16, np.uint16(0x7C00)),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, np.uint16(0x7F80)),
}
_CHECKED_BYTES = 2**18

# The CPU backend uses a buffer without copying it only if it has this alignment, in bytes.
_ALIGNMENT = 64
_NAMED = 3

# A smaller leaf is read by one thread.
_LARGE_BYTES = 2**24


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose names and shapes match its config; its weights are not read yet.

    `read` fills an array with rows of one tensor and casts to the array's dtype. `dtype` is the
    smallest parameter dtype that represents every stored tensor exactly: bfloat16 if all tensors
    are bfloat16, otherwise float32. `packed` finds the tensors that are stored in 4 bits and stay
    so.
    """

    config: LlamaConfig
    dtype: np.dtype
    read: TensorReader
    packed: Packer = lambda name: None

    def load(
        self,
        dtype: DTypeLike,
        quantize: str | None = None,
        *,
        embeddings_on_host: bool = False,
        devices: Devices = ON_ONE,
    ) -> dict[str, Any]:
        """The parameter tree; see `assemble`.

        Args:
          dtype: float32 or bfloat16, for all weights that are not quantized.
          quantize: "nf4" quantizes the layers' linear maps from the stored values, some rows at a
            time while they are read.
          embeddings_on_host: puts embedding and head in pinned host memory; they never reach the
            device.
          devices: that get the weights, or parts of them; by default the first one alone.

        Raises:
          InputError: an option is invalid, or a weight's shape cannot be quantized.
        """
        return assemble(
            tensor_names(self.config),
            self.read,
            parameter_dtype(dtype),
            self._packer(quantize),
            on_host=EMBEDDING_MODULES if embeddings_on_host else (),
            devices=devices,
        )

    def weights_bytes(self, dtype: DTypeLike, quantize: str | None = None) -> int:
        """The bytes of all weights as `load` returns them; reads none."""
        packed, plain = self._packer(quantize), parameter_dtype(dtype)
        packings = (packed(name) or one_array(name, self.read, plain) for name in tensor_names(self.config))
        kinds = itertools.chain.from_iterable(packing.leaves.values() for packing in packings)
        return sum(math.prod(shape) * of.itemsize for shape, of in kinds)

    def _packer(self, quantize: str | None) -> Packer:
        quantized = quantizing(self.read, self.config, quantize)
        return lambda name: self.packed(name) or quantized(name)


def parameter_dtype(dtype: DTypeLike) -> np.dtype:
    """The NumPy dtype of `dtype` (a name, a NumPy or a JAX dtype): float32 or bfloat16.

    Raises:
      InputError: it is any other dtype.
    """
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name not in DTYPES:
        raise InputError(f"dtype={name} is not supported for parameters; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def check_tensors(found: Mapping[str, Shape], expected: Mapping[str, Shape], *, source: Any, remedy: str) -> None:
    """Checks that a checkpoint's tensors have exactly the names and shapes that its config implies.

    Args:
      found: the checkpoint's tensors, name to shape.
      expected: the tensors that the config implies, name to shape.
      source: the file or directory, for the error message.
      remedy: what the user can do about a mismatch.

    Raises:
      InputError: one line with the first few unknown, missing and misshapen names, and their
        number.
    """
    misshapen = [
        f"{name} is {list(found[name])} and the config says {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    faults = {
        "unknown": [name for name in found if name not in expected],
        "missing": [name for name in expected if name not in found],
        "misshapen": misshapen,
    }
    parts = [f"{len(names)} {kind} ({abridged(names)})" for kind, names in faults.items() if names]
    if parts:
        raise InputError(f"{source}: tensors do not match the config: {'; '.join(parts)}; {remedy}")


def require_finite(values: np.ndarray, path: Any, name: str, *, shape: Shape | None = None, start: int = 0) -> None:
    """Checks that values just read contain neither NaN nor infinity.

    One such value would spoil every output. The check costs one pass over the values. One core (Zen
    4) checks 14 to 22 GB per second if the values, a few MB, are still in its cache; disks deliver
    1 to 7 GB per second.

    Args:
      values: C-contiguous, float32, float16 or bfloat16; other dtypes have no such values.
      path, name: the file and the tensor, for the error message.
      shape, start: the shape of the whole tensor and the index of the first value in it, if
      `values` is only a part.

    Raises:
      InputError: a value is not finite; the message names the first one and its index.
    """
    if values.dtype not in _EXPONENTS:
        return
    bits, exponent = _EXPONENTS[values.dtype]
    flat = values.reshape(-1).view(bits)
    scratch = np.empty(min(flat.size, _CHECKED_BYTES // flat.itemsize), bits)
    for part in row_chunks(flat.size, flat.itemsize, _CHECKED_BYTES):
        found = np.bitwise_and(flat[part], exponent, out=scratch[: part.stop - part.start])
        if found.max() == exponent:
            index = part.start + int(found.argmax())
            place = [int(i) for i in np.unravel_index(start + index, shape or values.shape)]
            raise InputError(
                f"{path}: {name} is {values.reshape(-1)[index]} at {place} (as {values.dtype}); "
                "the file is damaged, or its training diverged: download it again, or use "
                "another"
            )


def abridged(names: Collection[str]) -> str:
    """The first few names, and an ellipsis if there are more."""
    return ", ".join([*names][:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def assemble(
    names: Iterable[TensorName],
    read: TensorReader,
    dtype: np.dtype,
    packed: Packer = lambda name: None,
    *,
    on_host: Collection[str] = (),
    devices: Devices = ON_ONE,
) -> dict[str, Any]:
    """Builds the parameter tree, one leaf of all layers at a time, on its devices.

    Args:
      names: the tensors in the order of `tensor_names`: all layers of one kind, and their experts,
        before the next kind.
      read: fills an array of `dtype` with rows of the named tensor.
      dtype: the leaves' dtype.
      packed: the leaves of the named tensor, the same for all its layers; None for one array of
        `dtype`.
      on_host: modules outside the layers whose leaves go to pinned host memory instead of the
        device.
      devices: that get the leaves, or parts of them. If processes have different parts, all of them
        call this.

    Returns:
      The nested dictionary of `lcjax.model.params`, of JAX arrays. On the CPU they own the filled
      buffers. Nothing is copied, so the peak is the tree itself plus what `read` needs. On a GPU
      the host has one leaf at a time, or the part of it that belongs to this process's GPUs.

    Raises:
      InputError: of `read`; if processes have different parts, all of them raise it.
    """
    tree: dict[str, Any] = {}
    for path, tensors in _by_leaf(names):
        packings = [packed(name) or one_array(name, read, dtype) for name in tensors]
        stack = _Stack(path, _stacks(tensors), packings[0], devices, on_host=path[0] in on_host)
        _fill(
            stack,
            [(packing, stack.parts(name.index)) for packing, name in zip(packings, tensors, strict=True)],
            devices,
        )
        for below, leaf in stack.put().items():
            insert(tree, path + below, leaf)
        del stack  # before the next one exists
    return tree


def _fill(stack: _Stack, tensors: list[tuple[Packing, Parts]], devices: Devices) -> None:
    """Reads the tensors of a leaf into their parts of its buffers."""
    reads = [functools.partial(packing.read, stack.rows, out) for packing, out in tensors]
    if devices.cut_between_processes:
        # Otherwise the others would wait for a process that cannot read its rows.
        found = map(together, reads)
    else:
        found = at_once(reads) if tensors[0][0].is_plain and stack.is_large else (read() for read in reads)
    for packing, out in tensors:
        packing.finish(stack.rows, out, next(found))


class _Stack:
    """The leaves of a tensor of all layers, or of one outside of them, while they are filled.

    Attributes:
      rows: of the tensor, those that this process has.
    """

    def __init__(self, leaf_path: Path, stacks: Shape, packing: Packing, devices: Devices, *, on_host: bool):
        self._leaves = {}
        cut = []
        for path, (shape, dtype) in packing.leaves.items():
            stacked = jax.ShapeDtypeStruct((*stacks, *shape), dtype)
            leaf = devices.destination(leaf_path + path, stacked, on_host=on_host)
            self._leaves[path] = leaf, [aligned_empty(shape, dtype) for shape in leaf.part_shapes()]
            cut += [rows for rows in [leaf.rows()] if rows is not None]
        self.rows = cut[0] if cut else Rows((slice(0, packing.rows),))

    @property
    def is_large(self) -> bool:
        """Whether it is worth to start threads for it."""
        return sum(buffer.nbytes for _, buffers in self._leaves.values() for buffer in buffers) >= _LARGE_BYTES

    def parts(self, index: tuple[int, ...]) -> Parts:
        """The buffers of one tensor, at its index along the leading axes."""
        return {path: [buffer[(*index, ...)] for buffer in buffers] for path, (_, buffers) in self._leaves.items()}

    def put(self) -> dict[Path, jax.Array]:
        """The filled leaves on their devices, by their paths below the tensor's."""
        return {path: leaf.put(buffers) for path, (leaf, buffers) in self._leaves.items()}


def insert(tree: dict[str, Any], path: tuple[str, ...], leaf: Any) -> None:
    """Sets `tree[path[0]][path[1]]...` to the leaf and creates the dictionaries in between."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf


def tree_leaves(tree: dict[str, Any], names: Iterable[TensorName]) -> dict[str, tuple[Any, TensorName]]:
    """For each tensor's name, the leaf of the tree that contains it and its place in the leaf.

    Raises:
      ValueError: a leaf is missing, unexpected or of another shape.
    """
    by_path = {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    leaves = _by_leaf(names)
    if differing := sorted(".".join(path) for path in by_path.keys() ^ dict(leaves).keys()):
        raise ValueError(f"not the parameter tree of this config: {abridged(differing)} in only one of them")
    for path, tensors in leaves:
        shape = (*_stacks(tensors), *tensors[0].shape)
        if by_path[path].shape != shape:
            raise ValueError(f"{'.'.join(path)} has shape {by_path[path].shape}; the config says {shape}")
    return {name.name: (by_path[path], name) for path, tensors in leaves for name in tensors}


def _by_leaf(names: Iterable[TensorName]) -> list[tuple[Path, list[TensorName]]]:
    """The tensors of each leaf, which are adjacent and in the order of their indices."""
    return [(path, list(tensors)) for path, tensors in itertools.groupby(names, lambda name: name.path)]


def _stacks(tensors: list[TensorName]) -> Shape:
    """The sizes of the leading axes of the leaf of these tensors."""
    return tuple(i + 1 for i in tensors[-1].index)


def aligned_empty(shape: Shape, dtype: np.dtype) -> np.ndarray:
    """An uninitialized array whose first byte is at a multiple of 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    storage = np.empty(size + _ALIGNMENT, np.uint8)
    start = -storage.ctypes.data % _ALIGNMENT
    return storage[start : start + size].view(dtype).reshape(shape)


def row_chunks(rows: int, row_bytes: int, chunk_bytes: int = 2**22) -> Iterator[slice]:
    """Splits `rows` rows into slices of about `chunk_bytes` bytes, to bound the extra memory."""
    step = max(1, chunk_bytes // max(row_bytes, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
