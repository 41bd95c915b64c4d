"""Known bugs, injected in the same way into every implementation: by changing its inputs.

Each changed input has the same effect on the results as the bug inside a kernel:

| mutant | the kernel's bug | changed input |
| --- | --- | --- |
| phase off by 0.01 | every angle is 0.01 radians too large | operands and cotangents rotated |
| mask off by one | `<=` instead of `<` | window + 1, or query_offset + 1 |
| missing scale | scores are q k^T | scale = 1 |
| dropped KV head | the last key/value head is not read | its keys and values are 0 |
| int32 wrap of rows | offsets of late keys overflow | keys wrap at half the length |
| int32 wrap of offset | a query's key index overflows | query_offset - 2^32 |
| int32 wrap of positions | position x 4,096 overflows | the position after overflow |
| missing attention factor | cosines and sines are not scaled | attention_factor = 1 |
| swapped halves | the two elements of a pair are swapped | operands with swapped halves |

The references are not changed. A mutant may leave some gradients correct. It counts as caught if,
for each of its shapes, at least one case violates the tolerance rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from lcjax_scripts.verify.cases import ATTENTION_FEATURES, AttentionShape, RopeShape, Shapes
from lcjax_scripts.verify.inputs import Arrays, Options

Plant = Callable[[Arrays, Options], tuple[Arrays, Options]]

# The shapes have what the mutants need: a causal diagonal, a scale other than 1, several KV heads,
# and large rotations.
ATTENTION_SHAPES: Shapes = {
    "mutants, attention float32": AttentionShape(150, 6, 2, 64, query_offset=0, segments="packed"),
    "mutants, attention bfloat16": AttentionShape(150, 6, 2, 64, query_offset=0, window=40, dtype="bfloat16"),
}
FAR_SHAPES: Shapes = {
    "offset beyond int32": ATTENTION_FEATURES["offset beyond int32"],
    # Mosaic supports no other dtypes and values of head_dim than such.
    "mutants, offset beyond int32": AttentionShape(150, 2, 1, 64, keys=100, query_offset=2**31 + 50, dtype="bfloat16"),
}
ROPE_SHAPES: Shapes = {
    "mutants, rope float32": RopeShape(67, 6, 2, 64, positions="at 1M"),
    "mutants, rope bfloat16": RopeShape(67, 6, 2, 64, pairs=24, positions="at 1M", dtype="bfloat16"),
}


SCALED_ROPE_SHAPES: Shapes = {
    "mutants, rope yarn": RopeShape(67, 6, 2, 64, positions="at 1M", attention_factor=1.2, dtype="bfloat16"),
}


def phase(arrays: Arrays, options: Options) -> tuple[Arrays, Options]:
    pairs = len(arrays["inverse_frequencies"])
    angles = {"q": 0.01, "k": 0.01, "dq_out": -0.01, "dk_out": -0.01}
    turned = {name: _turned(arrays[name], pairs, angle) for name, angle in angles.items()}
    return arrays | turned, options


def mask(arrays: Arrays, options: Options) -> tuple[Arrays, Options]:
    if options["window"] is not None:
        return arrays, options | {"window": options["window"] + 1}
    return arrays, options | {"query_offset": _query_offset(arrays, options) + 1}


def scale(arrays: Arrays, options: Options) -> tuple[Arrays, Options]:
    return arrays, options | {"scale": 1.0}


def head(arrays: Arrays, options: Options) -> tuple[Arrays, Options]:
    def without_last(x_BSKD: np.ndarray) -> np.ndarray:
        return np.concatenate([x_BSKD[:, :, :-1], 0 * x_BSKD[:, :, -1:]], axis=2)

    return arrays | {name: without_last(arrays[name]) for name in ("k", "v")}, options


def rows(arrays: Arrays, options: Options) -> tuple[Arrays, Options]:
    keys = arrays["k"].shape[1]
    read = np.arange(keys) % (keys // 2)
    return arrays | {name: arrays[name][:, read] for name in ("k", "v")}, options


def offset(arrays: Arrays, options: Options) -> tuple[Arrays, Options]:
    return arrays, options | {"query_offset": _query_offset(arrays, options) - 2**32}


def positions(arrays: Arrays, options: Options) -> tuple[Arrays, Options]:
    elements = arrays["positions"].astype(np.int64) * 4096
    return arrays | {"positions": (elements.astype(np.int32) // 4096).astype(np.int32)}, options


def factor(arrays: Arrays, options: Options) -> tuple[Arrays, Options]:
    return arrays, options | {"attention_factor": 1.0}


def swap_halves(arrays: Arrays, options: Options) -> tuple[Arrays, Options]:
    pairs = len(arrays["inverse_frequencies"])

    def swapped(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x[..., pairs : 2 * pairs], x[..., :pairs], x[..., 2 * pairs :]], axis=-1)

    return arrays | {name: swapped(arrays[name]) for name in ("q", "k", "dq_out", "dk_out")}, options


def _query_offset(arrays: Arrays, options: Options) -> int:
    aligned = arrays["k"].shape[1] - arrays["q"].shape[1]
    return aligned if options["query_offset"] is None else options["query_offset"]


def _turned(x: np.ndarray, pairs: int, angle: float) -> np.ndarray:
    first, second, rest = (part.astype(np.float64) for part in np.split(x, [pairs, 2 * pairs], axis=-1))
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A bug, and the shapes for which it must be caught."""

    plant: Plant
    shapes: Shapes

    @property
    def operation(self) -> str:
        return next(iter(self.shapes.values())).operation


MUTANTS = {
    "phase off by 0.01": Mutant(phase, ROPE_SHAPES),
    "missing attention factor": Mutant(factor, SCALED_ROPE_SHAPES),
    "swapped halves": Mutant(swap_halves, ROPE_SHAPES),
    "int32 wrap of positions": Mutant(positions, ROPE_SHAPES),
    "mask off by one": Mutant(mask, ATTENTION_SHAPES),
    "missing scale": Mutant(scale, ATTENTION_SHAPES),
    "dropped KV head": Mutant(head, ATTENTION_SHAPES),
    "int32 wrap of rows": Mutant(rows, ATTENTION_SHAPES),
    "int32 wrap of offset": Mutant(offset, FAR_SHAPES),
}
