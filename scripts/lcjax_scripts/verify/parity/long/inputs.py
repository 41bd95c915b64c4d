"""What both sides of a long shape share: which tensors there are, the hash that their values come from, and the rows looked at.

Gigabytes of values are made on each side's device, element by element from the element's index, in integers: no rounding differs.
"""

from __future__ import annotations

import numpy as np

from lcjax_scripts.verify.cases import LongShape
from lcjax_scripts.verify.inputs import Arrays, digest
from lcjax_scripts.verify.parity.jobs import Job

MULTIPLIERS = (2_654_435_761, 73_244_475)
SHIFTS = (16, 15)
WORD = 2**32
# A value is one of 256 multiples of 1/64, which every dtype holds: standard deviation 1.15.
OFFSET, UNIT = 128, 1 / 64

TENSORS = ("q", "k", "v", "dout")
ROPE_TENSORS = ("q", "k", "dq_out", "dk_out")


def long_shape(job: Job) -> LongShape:
    assert isinstance(job.shape, LongShape)
    return job.shape


def tensors(shape: LongShape) -> dict[str, tuple[int, tuple[int, int, int, int]]]:
    """(seed, shape) by name."""
    names = ROPE_TENSORS if shape.of == "rope" else TENSORS
    of_queries = ("q", "dout", "dq_out")
    heads = {name: shape.heads if name in of_queries else shape.kv_heads for name in names}
    return {name: (n + 1, (1, shape.tokens, heads[name], shape.head_dim)) for n, name in enumerate(names)}


def inverse_frequencies(shape: LongShape) -> np.ndarray:
    """float32 [head_dim / 2]."""
    return (500_000.0 ** -(np.arange(shape.head_dim // 2) / (shape.head_dim // 2))).astype(np.float32)


def sample_rows(shape: LongShape) -> np.ndarray:
    """int32 [rows looked at]."""
    return np.concatenate([np.arange(start, start + shape.rows, dtype=np.int32) for start in shape.samples])


def digest_of(rows: Arrays) -> str:
    """Of float32 values of the rows looked at."""
    return digest({name: np.asarray(array, np.float32) for name, array in rows.items()})
