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

_SUFFIXES = "_blocks", "_scales"
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
                if leaf == "exponents" and values.max(initial=0) > mxfp4.LARGEST_EXPONENT:
                    raise InputError(
                        f"{tensor.path}: {tensor.name} has a scale of {values.max()}, so that weights are infinite or NaN "
                        f"(at most {mxfp4.LARGEST_EXPONENT} is possible); {_REMEDY}"
                    )


def take_experts(
    stored: Mapping[str, StoredTensor], config: LlamaConfig
) -> tuple[dict[str, StoredTensor], dict[str, Mxfp4Weight]]:
    """(the tensors with a part for each expert, the weights in MXFP4 by the names of their parts).

    Raises:
      InputError: a tensor does not have the shape that the config says, or has no blocks or scales.
    """
    tensors, packed = dict(stored), {}
    for tensor, parts in joint_tensors(config).items():
        if tensor in tensors:
            whole = tensors.pop(tensor)
            _check(whole, stored_shape(parts))
            tensors |= {name.name: _part(whole, name, name.shape, transposed=len(name.shape) == 2) for name in parts}
        elif found := {suffix: tensors.pop(tensor + suffix) for suffix in _SUFFIXES if tensor + suffix in tensors}:
            if len(found) == 1:
                [[suffix, one]] = found.items()
                other = next(name for name in _SUFFIXES if name != suffix)
                raise InputError(f"{one.path}: {tensor}{suffix} is there, but {tensor}{other} is not; {_REMEDY}")
            blocks, scales = found.values()
            out_features, in_features = parts[0].shape
            count, groups = len(parts), in_features // mxfp4.BLOCK
            _check(blocks, (count, out_features, groups, mxfp4.BLOCK // 2), packed=True)
            _check(scales, (count, out_features, groups), packed=True)
            for name in parts:
                of_expert = (_part(x, name, x.shape[1:]) for x in (blocks, scales))
                packed[name.name] = Mxfp4Weight(*of_expert, shape=name.shape)
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


def _check(tensor: StoredTensor, shape: Shape, *, packed: bool = False) -> None:
    if packed and tensor.dtype != np.uint8:
        raise InputError(f"{tensor.path}: {tensor.name} is stored as {tensor.dtype}, not as uint8; {_REMEDY}")
    if tensor.shape != shape:
        raise InputError(f"{tensor.path}: {tensor.name} is {list(tensor.shape)}, not {list(shape)}; {_REMEDY}")
