"""Tensors of Hugging Face checkpoints that hold the weights of all experts of a layer.

The table of a family names an expert's part of a tensor X as `X[{expert}]`. A matrix X is [E, I, O]
in the file, the transpose of the tree's [E, O, I]. In MXFP4 there are two tensors instead:

- `X_blocks`: uint8 [E, O, I / 32, 16].
- `X_scales`: uint8 [E, O, I / 32].

Shapes: E experts, O out, I in.

Source: transformers 5, `models/gpt_oss/modeling_gpt_oss.py` and `integrations/mxfp4.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lcjax.config import LlamaConfig
from lcjax.errors import InputError
from lcjax.model.params import TensorName, tensor_names
from lcjax.ops import mxfp4
from lcjax.parallel.loading import Rows
from lcjax.weights.packing import Packing, Parts, Shape
from lcjax.weights.safetensors_files import StoredTensor, read_into

_BLOCKS, _SCALES = "_blocks", "_scales"
_REMEDY = "download the model again"


@dataclasses.dataclass(frozen=True)
class Mxfp4Weight:
    """A weight [O, I] of one expert in MXFP4: its parts of the two stored tensors."""

    blocks: StoredTensor
    scales: StoredTensor
    shape: Shape

    @property
    def path(self) -> Path:
        """The file that it is in."""
        return self.blocks.path

    @property
    def kind(self) -> str:
        """The kind in words; all layers and experts of a stack have the same."""
        return "mxfp4"

    def packing(self) -> Packing:
        """Its place in the parameter tree."""
        leaves = mxfp4.leaf_types(*self.shape)
        return Packing({(name,): kind for name, kind in leaves.items()}, self._fill, self.shape[0])

    def read(self, out: np.ndarray, start: int = 0) -> None:
        """Fills an array with dequantized rows from `start` on, rounded to the array's dtype."""
        rows = slice(start, start + len(out))
        types = mxfp4.leaf_types(len(out), self.shape[1])
        leaves = {name: np.empty(*kind) for name, kind in types.items()}
        self._fill(Rows((rows,)), {(name,): [leaf] for name, leaf in leaves.items()})
        out[...] = np.asarray(mxfp4.dequantize({name: jnp.asarray(x) for name, x in leaves.items()}, out.dtype))

    def _fill(self, rows: Rows, out: Parts) -> None:
        for leaf, tensor in (("blocks", self.blocks), ("exponents", self.scales)):
            for part, values in zip(rows.parts, out[leaf,], strict=True):
                read_into(tensor, values, part.start * values.shape[1])


def take_experts(
    stored: Mapping[str, StoredTensor], config: LlamaConfig
) -> tuple[dict[str, StoredTensor], dict[str, Mxfp4Weight]]:
    """(the tensors with a part for each expert, the weights in MXFP4 by the names of their parts).

    Raises:
      InputError: a tensor does not have the shape that the config says.
    """
    tensors, packed = dict(stored), {}
    for tensor, parts in joint_tensors(config).items():
        if tensor in tensors:
            whole = tensors.pop(tensor)
            _check(whole, stored_shape(parts))
            tensors |= {name.name: _part(whole, name, name.shape, transposed=len(name.shape) == 2) for name in parts}
        elif tensor + _BLOCKS in tensors and tensor + _SCALES in tensors:
            blocks, scales = tensors.pop(tensor + _BLOCKS), tensors.pop(tensor + _SCALES)
            out_features, in_features = parts[0].shape
            count, groups = len(parts), in_features // mxfp4.BLOCK
            _check(blocks, (count, out_features, groups, mxfp4.BLOCK // 2))
            _check(scales, (count, out_features, groups))
            packed |= {
                name.name: Mxfp4Weight(*(_part(x, name, x.shape[1:]) for x in (blocks, scales)), name.shape)
                for name in parts
            }
    return tensors, packed


def joint_tensors(config: LlamaConfig) -> dict[str, list[TensorName]]:
    """The tensors that hold all experts of a layer, and their parts in order."""
    found: dict[str, list[TensorName]] = {}
    for name in _in_parts(config):
        found.setdefault(name.name.split("[")[0], []).append(name)
    return found


def stored_shape(parts: list[TensorName]) -> Shape:
    """The shape in a file of the tensor with these parts, if it is not in MXFP4."""
    return (len(parts), *reversed(parts[0].shape))


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """The tensor of a file from its parts: matrices are transposed."""
    return np.stack([part.T for part in parts])


def _in_parts(config: LlamaConfig) -> Iterator[TensorName]:
    return (name for name in tensor_names(config) if name.name.endswith("]"))


def _part(whole: StoredTensor, name: TensorName, shape: Shape, *, transposed: bool = False) -> StoredTensor:
    assert name.expert is not None
    offset = whole.offset + name.expert * math.prod(shape) * whole.dtype.itemsize
    return dataclasses.replace(whole, shape=shape, offset=offset, transposed=transposed)


def _check(tensor: StoredTensor, shape: Shape) -> None:
    if tensor.shape != shape:
        raise InputError(f"{tensor.path}: {tensor.name} is {list(tensor.shape)}, not {list(shape)}; {_REMEDY}")
