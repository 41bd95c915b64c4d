"""The mean of float32 values with the rounding of torch's `Tensor.mean()` on a CPU.

Offsets therefore agree with bitsandbytes to the last bit. torch sums in eight lanes of four rows,
each in a cascade of four levels: it adds the values of runs of a fixed length one after the other,
then runs of these sums, and so on. For more than 32,768 values torch uses several threads; this
code computes the result of one thread on every machine.

Shapes: N values, K steps of 32 values, R = 4 rows, W = 8 lanes.

Source: PyTorch, aten/src/ATen/native/cpu/SumKernel.cpp.
"""

from __future__ import annotations

import numpy as np

_ROWS, _LANES, _LEVELS = 4, 8, 4


def torch_mean(values_N: np.ndarray) -> np.float32:
    """The mean of a float32 vector, float32."""
    lanes = _LANES if len(values_N) >= _LANES else 1
    vectors_VW = values_N[: len(values_N) // lanes * lanes].reshape(-1, lanes)
    steps = len(vectors_VW) // _ROWS
    rows_RW = _cascade(vectors_VW[: steps * _ROWS].reshape(-1, _ROWS, lanes))
    lanes_W = _one_by_one([rows_RW[0], *vectors_VW[steps * _ROWS :], *rows_RW[1:]])
    remainder = _one_by_one([np.float32(0), *values_N[vectors_VW.size :]])
    return np.float32(_one_by_one([remainder, *lanes_W]) / np.float32(len(values_N)))


def _cascade(values_KRW: np.ndarray) -> np.ndarray:
    """The sum over K."""
    zeros = np.zeros(values_KRW.shape[1:], np.float32)
    run = 2 ** max(4, (len(values_KRW) - 1).bit_length() // _LEVELS)
    parts = []
    for _ in range(_LEVELS - 1):
        full = len(values_KRW) // run * run
        parts.append(_one_by_one([zeros, *values_KRW[full:]]))
        values_KRW = _one_by_one(values_KRW[:full].reshape(-1, run, *zeros.shape).swapaxes(0, 1))
    return _one_by_one([*parts, _one_by_one([zeros, *values_KRW])])


def _one_by_one(terms):
    """`(terms[0] + terms[1]) + terms[2] ...`; numpy's own sum would use a different order."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
