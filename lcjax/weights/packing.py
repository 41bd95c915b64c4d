"""Tensors that are several arrays in the parameter tree, such as quantized ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from lcjax.config import LlamaConfig
from lcjax.config.precision import check_quantize
from lcjax.model.params import TensorName
from lcjax.ops import nf4

Shape: TypeAlias = tuple[int, ...]
Path: TypeAlias = tuple[str, ...]
TensorReader: TypeAlias = Callable[[TensorName, np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Packing:
    """The leaves of one tensor that is not a single array, and a function that fills them.

    `leaves` gives shape and dtype by the path below the tensor's own. `fill` writes into arrays of
    these shapes, for one layer.
    """

    leaves: Mapping[Path, tuple[Shape, np.dtype]]
    fill: Callable[[Mapping[Path, np.ndarray]], None]


Packer: TypeAlias = Callable[[TensorName], Packing | None]


def quantizing(read: TensorReader, config: LlamaConfig, kind: str | None) -> Packer:
    """Quantizes the layers' linear maps as they are read; does nothing if `kind` is None.

    Raises:
      InputError: the kind is unknown, or a weight of this config cannot be quantized.
    """
    check_quantize(kind)
    if kind is None:
        return lambda name: None
    leaves: dict[Path, dict[str, tuple[Shape, np.dtype]]] = {
        row.path: nf4.leaf_types(*row.shape(config)) for row in config.family.stored(config) if row.quantizable
    }

    def pack(name: TensorName) -> Packing | None:
        if name.path not in leaves:
            return None
        return Packing({(leaf,): kind for leaf, kind in leaves[name.path].items()}, lambda out: fill(name, out))

    def fill(name: TensorName, out: Mapping[Path, np.ndarray]) -> None:
        # float32 represents every stored dtype exactly.
        weight_OI = np.empty(name.shape, np.float32)
        read(name, weight_OI)
        for leaf, values in nf4.quantize(weight_OI).items():
            out[leaf,][...] = values

    return pack
