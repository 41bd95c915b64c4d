"""The rounding of Triton's interpreter, as changed by the parity harness."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from lcjax_scripts.verify.parity.interpreter.rounding import round_as_a_gpu
from lcjax_scripts.verify.tolerance import error_ratio, ratios_of


def test_the_interpreter_rounds_as_a_gpu(monkeypatch):
    for owner, name in ((interpreter, "_convert_float"), (interpreter.InterpreterBuilder, "create_dot")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # restored afterwards
    round_as_a_gpu()
    rng = np.random.default_rng(0)
    x = np.append(rng.normal(size=1000), [np.inf, 0.0, 1e-40]).astype(np.float32)
    bits = interpreter._convert_float(x, tl.float32, tl.bfloat16, None)
    np.testing.assert_array_equal(bits.view(ml_dtypes.bfloat16), x.astype(ml_dtypes.bfloat16))
    back = interpreter._convert_float(bits, tl.bfloat16, tl.float32, None)
    np.testing.assert_array_equal(back, x.astype(ml_dtypes.bfloat16).astype(np.float32))

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        zero = np.zeros((*a.shape[:-1], b.shape[-1]), np.float32)
        handles = (interpreter.TensorHandle(x, tl.float32) for x in (a, b, zero))
        return interpreter.interpreter_builder.create_dot(*handles, None, 0).data

    a, b = (rng.normal(size=size).astype(np.float32) for size in ((64, 80), (80, 32)))
    np.testing.assert_array_equal(product(a, b), product(b.T, a.T).T)
    np.testing.assert_array_equal(product(a, b)[:16, :8], product(a[:16], b[:, :8]))
    exact = a.astype(np.float64) @ b
    assert error_ratio(product(a, b), a @ b, exact) <= 1

    a, b = (rng.normal(size=size).astype(np.float16).astype(np.float32) for size in ((64, 256), (256, 32)))
    exact = a.astype(np.float64) @ b
    in_one_chain = np.cumsum(a[:, :, None] * b, axis=1)[:, -1]
    assert ratios_of(product(a, b), in_one_chain, exact).root_mean_square < 0.25  # half the error
    stack = product(np.stack([a, -a]), np.stack([b, b]))
    np.testing.assert_array_equal(stack, np.stack([product(a, b), product(-a, b)]))
