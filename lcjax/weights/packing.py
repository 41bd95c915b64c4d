"""Tensors that are several arrays in the parameter tree, such as quantized ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias

import numpy as np

from lcjax.config import LlamaConfig
from lcjax.model.params import TensorName, check_quantizable
from lcjax.ops import nf4
from lcjax.parallel.loading import Rows

Shape: TypeAlias = tuple[int, ...]
Path: TypeAlias = tuple[str, ...]
Parts: TypeAlias = Mapping[Path, Sequence[np.ndarray]]

# Bytes in float32 of the rows that are quantized at a time.
_CHUNK_BYTES = 2**25

# That read tensors; each needs a few MB.
_THREADS = 4


class TensorReader(Protocol):
    """Reads a tensor from a file."""

    def __call__(self, name: TensorName, out: np.ndarray, start: int = 0) -> None:
        """Fills `out` with the rows of the tensor from `start` on, in the dtype of `out`."""


def _nothing(rows: Rows, out: Parts, found: Any) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Packing:
    """The leaves of one tensor in the parameter tree, and functions that fill them.

    A process may have only some rows of the tensor, and then of each leaf that is cut like it. The
    functions write into arrays by leaf: one for each part of the rows, or a single one for a leaf
    that is not cut.

    Attributes:
      leaves: shape and dtype by the path below the tensor's own.
      read: reads the rows from the file.
      rows: the number of all rows.
      finish: called with what `read` has returned, when all processes have read their rows.
    """

    leaves: Mapping[Path, tuple[Shape, np.dtype]]
    read: Callable[[Rows, Parts], Any]
    rows: int
    finish: Callable[[Rows, Parts, Any], None] = _nothing

    @property
    def is_plain(self) -> bool:
        """Whether it is a single array, whose reading needs little memory."""
        return set(self.leaves) == {()}


Packer: TypeAlias = Callable[[TensorName], Packing | None]


def one_array(name: TensorName, read: TensorReader, dtype: np.dtype) -> Packing:
    """A tensor that is a single array of `dtype`."""

    def fill(rows: Rows, out: Parts) -> None:
        for part, values in zip(rows.parts, out[()], strict=True):
            read(name, values, part.start)

    return Packing({(): (name.shape, dtype)}, fill, name.shape[0])


def at_once(reads: Sequence[Callable[[], Any]]) -> Iterator[Any]:
    """Calls functions in threads, some at a time; yields their results in order.

    One core copies slower than a disk or its cache delivers.
    """
    threads = ThreadPoolExecutor(_THREADS, "reading")
    try:
        yield from threads.map(lambda read: read(), reads)
    finally:
        threads.shutdown(cancel_futures=True)


def quantizing(read: TensorReader, config: LlamaConfig, kind: str | None) -> Packer:
    """Quantizes the layers' linear maps as they are read; does nothing if `kind` is None.

    Raises:
      InputError: the kind is unknown, or a weight of this config cannot be quantized.
    """
    check_quantizable(config, kind)
    if kind is None:
        return lambda name: None
    leaves: dict[Path, dict[str, tuple[Shape, np.dtype]]] = {
        row.path: nf4.leaf_types(*row.shape(config)) for row in config.family.stored(config) if row.quantizable
    }

    def pack(name: TensorName) -> Packing | None:
        if name.path not in leaves:
            return None
        of_tensor = {(leaf,): kind for leaf, kind in leaves[name.path].items()}
        return Packing(of_tensor, lambda rows, out: _quantized_rows(name, read, rows, out), name.shape[0], _with_scales)

    return pack


def _quantized_rows(name: TensorName, read: TensorReader, rows: Rows, out: Parts) -> list[np.ndarray]:
    """Fills the codes of the rows, and returns the scales of their blocks in float32."""
    found = []
    for part, codes in zip(rows.parts, out["codes",], strict=True):
        step = max(1, _CHUNK_BYTES // (4 * name.shape[1]))
        for start in range(part.start, part.stop, step):
            count = min(step, part.stop - start)
            # float32 represents every stored dtype exactly.
            weight_RI = np.empty((count, name.shape[1]), np.float32)
            read(name, weight_RI, start)
            found.append(nf4.quantize_rows(weight_RI, codes[start - part.start :][:count]))
    return found


def _with_scales(rows: Rows, out: Parts, absmax: Any) -> None:
    """Quantizes the scales; those of all rows have a common mean."""
    scales = nf4.quantize_scales(rows.join(absmax))
    for part, values in zip(rows.parts, out["absmax",], strict=True):
        values[...] = scales["absmax"][part]
    for leaf in ("absmax_scale", "absmax_offset"):
        out[leaf,][0][...] = scales[leaf]
