"""The references for sampled rows of a long shape, used by `scripts/parity.py --long`."""

from __future__ import annotations

import torch

from lcjax_scripts.verify import cases
from lcjax_scripts.verify.parity.long import inputs as long_inputs
from lcjax_scripts.verify.parity.long import torch_side
from triton_ref import reference


def test_sampled_rows_equal_those_of_the_full_reference():
    """Compares the loop over blocks with the specification, in float64."""
    for shape in (cases.LongShape(300, 4, 2, 16), cases.LongShape(300, 2, 2, 16, window=70)):
        inputs = {name: torch_side.values(shape, name) for name in long_inputs.tensors(shape)}
        found = torch_side.attention_rows(shape, inputs, torch.float64)
        q, k, v = (inputs[name].double().requires_grad_() for name in ("q", "k", "v"))
        out, lse = reference.attention(q, k, v, window=shape.window)
        dq, dk, dv = torch.autograd.grad(out, (q, k, v), inputs["dout"].double())
        rows = long_inputs.sample_rows(shape)
        expected = {
            "out": out[:, rows],
            "lse": lse[:, :, rows],
            "dq": dq[:, rows],
            "dk": dk[:, rows],
            "dv": dv[:, rows],
        }
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value.detach(), rtol=1e-12, atol=1e-12, msg=name)
