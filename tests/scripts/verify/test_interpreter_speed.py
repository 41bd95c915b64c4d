"""The speed-up of Triton's interpreter by the parity harness does not change any result."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from triton.language import core
from triton.runtime import interpreter

from lcjax_scripts.verify.parity.interpreter.speed import leave_unread_checks_out, make_fast, patch_once, remember_types


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    for owner, name in (
        (interpreter, "_patch_lang"),
        (interpreter, "_get_np_dtype"),
        (core.block_type, "__init__"),
        (core.tensor, "__init__"),
        (interpreter.interpreter_builder, "options"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))


def _halves(x, rows):
    return tl.where(tl.arange(0, 16)[:, None] < rows, x * 0.5, 0.0).to(tl.float16)


halves = interpreter.InterpretedFunction(_halves)


def kernel(x, counts, out, N: tl.constexpr):
    row = tl.program_id(0) * 16 + tl.arange(0, 16)
    column = tl.arange(0, N)
    rows = tl.load(counts + tl.program_id(0))
    pointers = row[:, None] * N + column[None, :]
    block = tl.load(x + pointers, mask=row[:, None] < 40, other=1.0).to(tl.float32)
    product = tl.dot(halves(block, rows), halves(block, rows + 1).T).to(tl.float32)
    tl.store(out + row[:, None] * 16 + tl.arange(0, 16)[None, :], product + rows * (row[:, None] % 3))


def run_kernel() -> torch.Tensor:
    x = torch.linspace(-3, 5, 48 * 32, dtype=torch.float32).reshape(48, 32).bfloat16()
    counts = torch.tensor([4, 2**31 - 1, 9], dtype=torch.int32)  # the second one overflows
    out = torch.zeros(48, 16)
    interpreter.InterpretedFunction(kernel)[(3,)](x, counts, out, N=32)
    return out


def test_no_result_changes():
    slow = run_kernel()
    assert len(slow.unique()) > 50
    make_fast()
    for _ in range(2):  # with an empty and with a filled cache
        assert torch.equal(run_kernel(), slow)


def test_a_call_within_a_kernel_patches_nothing(monkeypatch):
    looked_through = []

    def patch(package, builder, scope):
        looked_through.append(package)
        original(package, builder, scope)

    original = interpreter._patch_builtin
    monkeypatch.setattr(interpreter, "_patch_builtin", patch)
    patch_once()
    scope = interpreter._patch_lang(kernel)
    assert {tl, core} <= {x for x in looked_through if x in (tl, core)}
    assert not core.is_builtin(tl.load)
    assert not core.is_builtin(core.load)
    looked_through.clear()
    interpreter._patch_lang(halves.fn).restore()
    assert looked_through == []
    assert not core.is_builtin(tl.load), "a kernel's function must leave the patches of the kernel"
    scope.restore()
    assert core.is_builtin(tl.load)
    assert core.is_builtin(core.load)
    interpreter._patch_lang(kernel).restore()
    assert looked_through


def test_types_are_cached_by_dtype_shape_and_address_space():
    pointers = [tl.pointer_type(tl.float32), tl.pointer_type(tl.float32, "shared")]
    cases = [
        (element, shape)
        for element in (tl.float32, tl.float16, tl.int1, *pointers)
        for shape in ([16, 32], [32, 16], [16], [1, 16], [tl.constexpr(16), tl.constexpr(32)])
    ]

    def facts():
        blocks = [tl.block_type(element, shape) for element, shape in cases]
        types = [*blocks, tl.float32, tl.int64, *pointers]
        tensors = [tl.tensor("handle", of) for of in types]
        of_types = [(t.name, str(t), str(t.scalar), interpreter._get_np_dtype(t)) for t in types]
        of_blocks = [([*t.shape], t.numel, t.element_ty) for t in blocks]
        of_tensors = [(x.handle, x.type, x.dtype, [n.value for n in x.shape], x.numel.value) for x in tensors]
        return of_types, of_blocks, of_tensors

    forgotten = facts()
    remember_types()
    assert facts() == forgotten
    assert facts() == forgotten
    assert tl.block_type(pointers[0], [16]) != tl.block_type(pointers[1], [16])
    with pytest.raises(ValueError, match="power of 2"):
        tl.block_type(tl.float32, [24])
    with pytest.raises(ValueError, match="power of 2"):
        tl.block_type(tl.float32, [24])


@pytest.mark.parametrize("debug", [False, True])
def test_the_overflow_check_remains_if_it_is_used(monkeypatch, debug):
    builder = interpreter.interpreter_builder
    monkeypatch.setattr(builder, "options", interpreter.InterpreterOptions(debug=debug))
    leave_unread_checks_out()
    assert builder.options == interpreter.InterpreterOptions(debug=debug, sanitize_overflow=debug)
