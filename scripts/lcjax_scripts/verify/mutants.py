"""Known bugs, planted the same way in every implementation: in what it is called with.

Each has the effect on the results that the bug has inside a kernel:

| mutant | the kernel's bug | planted as |
| --- | --- | --- |
| phase off by 0.01 | every angle 0.01 radians too large | operands and cotangents rotated by 0.01 beforehand: rotations add up |
| mask off by one | `<=` for `<`: the window's edge, or the diagonal, is one key too far | window + 1, or query_offset + 1 |
| missing scale | scores are q k^T | scale = 1 |
| dropped KV head | the last key/value head is never read | its keys and values are 0 |
| int32 wrap of rows | element offsets of late keys wrap: earlier rows are read | the same, with the wrap at half the length |
| int32 wrap of offset | the key index of a query wraps to negative, so no key is before it | query_offset less 2^32 |
| int32 wrap of positions | the row of a table of cosines, position x 4,096 elements, wraps | that position |
| missing attention factor | cosines and sines are not multiplied | attention_factor = 1 |
| swapped halves | a pair's two elements are exchanged | operands with their halves swapped |

The references stay what they are. A gradient that such a plant leaves right is a case that the mutant passes; one case above the
rule on every shape is what it takes to be caught.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from lcjax_scripts.verify.cases import ATTENTION_FEATURES, AttentionShape, RopeShape, Shapes
from lcjax_scripts.verify.inputs import Arrays, Options

Plant = Callable[[Arrays, Options], tuple[Arrays, Options]]

# Each with what the mutants need: a causal edge, a scale that is not 1, several KV heads, rotations
# that are not trivial.
ATTENTION_SHAPES: Shapes = {
    "mutants, attention float32": AttentionShape(150, 6, 2, 64, query_offset=0, segments="packed"),
    "mutants, attention bfloat16": AttentionShape(150, 6, 2, 64, query_offset=0, window=40, dtype="bfloat16"),
}
FAR_SHAPES: Shapes = {"offset beyond int32": ATTENTION_FEATURES["offset beyond int32"]}
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
    """A bug and the shapes on which it has to show."""

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
