"""Matrices of experts that a GGUF file has in MXFP4, read without dequantization.

A block of 17 bytes has the exponent and the codes of 32 values. Byte i has the codes of the values
i, in the low nibble, and i + 16. In the parameter tree (`lcjax.ops.mxfp4.format`) it has those of
the values 2 i and 2 i + 1, so the codes are moved, and no value changes.

Shapes: O out, I in features.

Source: llama.cpp, `ggml/src/ggml-common.h` and `gguf-py/gguf/quants.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lcjax.errors import InputError
from lcjax.model.params import TensorName
from lcjax.ops import mxfp4
from lcjax.parallel.loading import Rows
from lcjax.weights.packing import Packing, Parts

_BLOCK_BYTES = 1 + mxfp4.BLOCK // 2

ReadBytes = Callable[[TensorName, np.ndarray, int], None]
"""Fills an array [O, I / 32 * 17] with the stored rows of a tensor, from a given one on."""


def packing_of(name: TensorName, read_bytes: ReadBytes, where: str) -> Packing:
    """The place of a matrix [O, I] in the parameter tree.

    Args:
      name: the matrix.
      read_bytes: reads its rows.
      where: the file and the tensor, for an error message.

    Raises:
      InputError: while it is read, if a block's values are infinite or NaN.
    """
    out_features, in_features = name.shape
    leaves = {(leaf,): kind for leaf, kind in mxfp4.leaf_types(*name.shape).items()}

    def fill(rows: Rows, out: Parts) -> None:
        for part, blocks, exponents in zip(rows.parts, out["blocks",], out["exponents",], strict=True):
            stored = np.empty((len(blocks), in_features // mxfp4.BLOCK, _BLOCK_BYTES), np.uint8)
            read_bytes(name, stored.reshape(len(blocks), -1), part.start)
            exponents[...], blocks[...] = stored[..., 0], _moved(stored[..., 1:]).reshape(blocks.shape)
            if (largest := exponents.max(initial=0)) > mxfp4.LARGEST_EXPONENT:
                raise InputError(
                    f"{where} has a scale of {largest}, so that weights are infinite or NaN (at most "
                    f"{mxfp4.LARGEST_EXPONENT} is possible); download the file again"
                )

    return Packing(leaves, fill, out_features)


def _moved(codes: np.ndarray) -> np.ndarray:
    """Bytes with the codes of neighboring values, from bytes with those of values i and i + 16."""
    in_order = np.concatenate([codes & 15, codes >> 4], axis=-1)
    return in_order[..., ::2] | in_order[..., 1::2] << 4
