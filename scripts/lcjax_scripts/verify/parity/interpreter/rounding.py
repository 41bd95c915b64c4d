"""Makes Triton's interpreter round like a GPU, so that it adds no errors of its own.

The interpreter truncates float32 to bfloat16, whereas the device rounds to nearest. The interpreter
also computes products with BLAS. On some processors, BLAS sums sequentially, whereas a tensor core
adds 16 terms at a time. The order of the sum also depends on the block size, so that the backward
pass, which has different block sizes, would not reproduce the float32 scores of the forward pass.
With scores in the hundreds, this is most of the error.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import triton.language as tl
from triton.runtime import interpreter

# With this value, products are about as accurate as those of XLA in Pallas' interpreter.
LANES = 4
# Terms that a tensor-core instruction adds for 16-bit numbers. Pallas' interpreter does the same.
TERMS_OF_A_STEP = 16


def round_as_a_gpu() -> None:
    """Replaces the interpreter's conversions and products, for the whole process."""
    convert, builder = interpreter._convert_float, interpreter.InterpreterBuilder
    multiply = builder.create_dot

    def converted(x, of, to, rounding_mode):
        if (of, to) == (tl.float32, tl.bfloat16):
            return x.astype(ml_dtypes.bfloat16).view(np.uint16)
        if (of, to) == (tl.bfloat16, tl.float32):
            return x.view(ml_dtypes.bfloat16).astype(np.float32)
        return convert(x, of, to, rounding_mode)

    def product(self, a, b, d, *options):
        if a.data.dtype != np.float32:
            return multiply(self, a, b, d, *options)
        summed = _summed_in_steps if _has_16_bits(a.data) else _summed_in_lanes
        return interpreter.TensorHandle(summed(a.data, b.data) + d.data, d.dtype.scalar)

    interpreter._convert_float = converted
    type.__setattr__(builder, "create_dot", product)


def _has_16_bits(x: np.ndarray) -> bool:
    """Returns whether these float32 values fit in bfloat16 or float16; their products are exact."""
    return not (np.ascontiguousarray(x).view(np.uint32) & 0x1FFF).any()


def _summed_in_steps(a_MK: np.ndarray, b_KN: np.ndarray) -> np.ndarray:
    """Returns `a b` in float32: BLAS sums TERMS_OF_A_STEP products, then partial sums are added.

    The operands may have batch dimensions.
    """
    a_MnS = a_MK.reshape(*a_MK.shape[:-1], -1, TERMS_OF_A_STEP)
    b_nSN = b_KN.reshape(*b_KN.shape[:-2], -1, TERMS_OF_A_STEP, b_KN.shape[-1])
    return np.matmul(a_MnS.swapaxes(-3, -2), b_nSN).sum(-3)


def _summed_in_lanes(a_MK: np.ndarray, b_KN: np.ndarray) -> np.ndarray:
    """Returns `a b` in float32: LANES running sums over every LANES-th k, then added in pairs.

    The operands may have a batch dimension.
    """
    if a_MK.ndim == 3:
        return np.stack([_summed_in_lanes(a, b) for a, b in zip(a_MK, b_KN, strict=True)])
    sums_LMN = np.zeros((LANES, len(a_MK), b_KN.shape[1]), np.float32)
    a_nLM1, b_nL1N = a_MK.T.reshape(-1, LANES, len(a_MK), 1), b_KN.reshape(-1, LANES, 1, b_KN.shape[1])
    for a_LM1, b_L1N in zip(a_nLM1, b_nL1N, strict=True):
        sums_LMN += a_LM1 * b_L1N
    while len(sums_LMN) > 1:
        sums_LMN = sums_LMN[::2] + sums_LMN[1::2]
    return sums_LMN[0]
