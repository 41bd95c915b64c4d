"""What both sides share of a long shape: the tensors, the hash for their values, the sampled rows.

Each side computes gigabytes of values on its device. A value is an integer hash of the element's
index, so rounding cannot differ.
"""

from __future__ import annotations

import numpy as np

from lcjax_scripts.verify.cases import LongShape
from lcjax_scripts.verify.inputs import Arrays, digest
from lcjax_scripts.verify.parity.jobs import Job

MULTIPLIERS = (2_654_435_761, 73_244_475)
SHIFTS = (16, 15)
WORD = 2**32
# A value is one of 256 multiples of 1/64, which every dtype represents exactly. The standard
# deviation is 1.15.
OFFSET, UNIT = 128, 1 / 64

TENSORS = ("q", "k", "v", "dout")
ROPE_TENSORS = ("q", "k", "dq_out", "dk_out")


def long_shape(job: Job) -> LongShape:
    assert isinstance(job.shape, LongShape)
    return job.shape


def tensors(shape: LongShape) -> dict[str, tuple[int, tuple[int, int, int, int]]]:
    """Returns (seed, shape) of each tensor by name."""
    names = ROPE_TENSORS if shape.of == "rope" else TENSORS
    of_queries = ("q", "dout", "dq_out")
    heads = {name: shape.heads if name in of_queries else shape.kv_heads for name in names}
    return {name: (n + 1, (1, shape.tokens, heads[name], shape.head_dim)) for n, name in enumerate(names)}


def inverse_frequencies(shape: LongShape) -> np.ndarray:
    """float32 [head_dim / 2]."""
    return (500_000.0 ** -(np.arange(shape.head_dim // 2) / (shape.head_dim // 2))).astype(np.float32)


def sample_rows(shape: LongShape) -> np.ndarray:
    """Returns the indices of the sampled rows, int32 [sampled rows]."""
    return np.concatenate([np.arange(start, start + shape.rows, dtype=np.int32) for start in shape.samples])


def digest_of(rows: Arrays) -> str:
    """Returns a digest of the sampled rows as float32."""
    return digest({name: np.asarray(array, np.float32) for name, array in rows.items()})
