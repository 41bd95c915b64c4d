"""Compares the interpreted Triton RoPE with the plain float64 reference."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import triton_ref
from tests.support.exact_angles import exact_angles
from tests.support.numerics import error_ratio
from triton_ref import reference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# (query heads, key heads, head_dim, rotated pairs)
SHAPES = {"gqa 1": (2, 2, 64, 32), "gqa 3": (6, 2, 20, 10), "many heads": (40, 5, 16, 8), "partial": (3, 1, 80, 12)}


class Call:
    """Random inputs and cotangents for 2 rows of 21 tokens, mostly at positions near 1,000,000."""

    def __init__(self, shape, dtype, seed=0):
        heads, kv_heads, head_dim, pairs = shape
        rng = np.random.default_rng(seed)
        sizes = (2, 21, heads, head_dim), (2, 21, kv_heads, head_dim)
        self.q, self.k, self.dq, self.dk = (torch.from_numpy(rng.normal(size=size)).to(dtype) for size in 2 * sizes)
        positions = rng.integers(999_000, 1_001_000, (2, 21))
        positions[:, :4] = np.arange(4)
        self.positions = torch.from_numpy(positions).int()
        self.frequencies = torch.from_numpy(500_000.0 ** -(np.arange(pairs) / pairs)).float()
        self.dtype = dtype

    def run(self, rope, dtype=None, attention_factor=1.0, **overrides):
        """Returns [q, k, dq, dk], computed in `dtype` or that of the inputs."""
        q, k, dq, dk = (x.to(dtype or self.dtype).clone() for x in (self.q, self.k, self.dq, self.dk))
        q.requires_grad_(), k.requires_grad_()
        arguments = {"positions_BT": self.positions, "inverse_frequencies_F": self.frequencies} | overrides
        arguments["attention_factor"] = attention_factor
        out = rope(1 * q, 1 * k, **arguments)
        return [x.detach().double().numpy() for x in (*out, *torch.autograd.grad(out, (q, k), (dq, dk)))]

    def ratios(self, rope=triton_ref.rope, expected_factor=1.0, **overrides):
        plain, exact = (self.run(reference.rope, dtype, expected_factor) for dtype in (None, torch.float64))
        dtype = jnp.dtype(str(self.dtype).removeprefix("torch."))
        return [error_ratio(*x, dtype=dtype) for x in zip(self.run(rope, **overrides), plain, exact, strict=True)]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_value_and_gradients(dtype, name):
    assert max(Call(SHAPES[name], DTYPES[dtype]).ratios()) <= 1


def test_the_attention_factor():
    call = Call(SHAPES["partial"], torch.float32)
    assert max(call.ratios(expected_factor=1.2, attention_factor=1.2)) <= 1
    assert min(call.ratios(expected_factor=1.2)) > 1


def far_call() -> Call:
    """Returns a call at positions up to 2^31 - 1, with frequencies up to 4 and down to 1e-7."""
    call = Call(SHAPES["many heads"], torch.float32)
    far = np.concatenate([np.arange(n - 3, n + 3) for n in (2**24, 2**30)] + [2**31 - 1 - np.arange(30)])
    call.positions = torch.from_numpy(far).reshape(2, 21).int()
    call.frequencies = torch.tensor([3.9, 2.0, 1.0, 0.7, 1e-2, 3e-4, 1e-5, 1e-7])
    return call


def exact_rope(q_BTHD, k_BTKD, positions_BT, inverse_frequencies_F, attention_factor=1.0):
    angles = torch.from_numpy(exact_angles(positions_BT.numpy(), inverse_frequencies_F.numpy()))
    cos, sin = ((attention_factor * f(angles))[:, :, None].to(q_BTHD.dtype) for f in (torch.cos, torch.sin))
    halves = (x.chunk(2, dim=-1) for x in (q_BTHD, k_BTKD))
    return tuple(torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1) for a, b in halves)


def test_positions_up_to_2_to_the_31():
    call = far_call()
    plain, exact = (call.run(exact_rope, dtype) for dtype in (torch.float32, torch.float64))

    def worst(actual):
        return max(error_ratio(*x, dtype=jnp.float32) for x in zip(actual, plain, exact, strict=True))

    assert worst(call.run(triton_ref.rope)) <= 1
    assert worst(call.run(triton_ref.rope, positions_BT=call.positions - 1)) > 1
    assert worst(call.run(triton_ref.rope, positions_BT=call.positions.float().int())) > 1


def test_the_reference_is_right_at_positions_up_to_2_to_the_31():
    call = far_call()
    for sign in (1, -1):
        frequencies = sign * call.frequencies
        actual, exact = (
            call.run(f, torch.float64, inverse_frequencies_F=frequencies) for f in (reference.rope, exact_rope)
        )
        for x, y in zip(actual, exact, strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=2**-29 * 2 * np.abs(y).max())


def test_it_works_in_place_and_on_views():
    """The output of a projection is a view. Its autograd history must include the rotation."""
    call = Call(SHAPES["gqa 3"], torch.float32)
    flat_q, flat_k = (x.flatten(2).requires_grad_() for x in (call.q.clone(), call.k.clone()))
    q, k = (1 * flat_q).view(2, 21, 6, 20), (1 * flat_k).view(2, 21, 2, 20)
    addresses = q.data_ptr(), k.data_ptr()
    out = triton_ref.rope(q, k, call.positions, call.frequencies)
    assert (out[0].data_ptr(), out[1].data_ptr()) == addresses
    gradients = torch.autograd.grad(out, (flat_q, flat_k), (call.dq, call.dk))
    expected = call.run(triton_ref.rope)
    for x, y in zip((*out, *gradients), expected, strict=True):
        np.testing.assert_array_equal(x.detach().double().numpy(), y.reshape(x.shape))


def test_what_was_saved_before_the_rotation_is_protected():
    call = Call(SHAPES["gqa 1"], torch.float32)
    leaf = call.q.clone().requires_grad_()
    q = 1 * leaf
    square = (q * q).sum()
    triton_ref.rope(q, call.k.clone(), call.positions, call.frequencies)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.backward()


def test_the_cotangents_are_not_modified():
    call = Call(SHAPES["partial"], torch.float32)
    q, k = call.q.clone().requires_grad_(), call.k.clone().requires_grad_()
    out = triton_ref.rope(1 * q, 1 * k, call.positions, call.frequencies)
    before = call.dq.clone(), call.dk.clone()
    torch.autograd.grad(out, (q, k), (call.dq, call.dk))
    torch.testing.assert_close((call.dq, call.dk), before, rtol=0, atol=0)


def test_dimensions_beyond_the_pairs_keep_their_bits():
    call = Call(SHAPES["partial"], torch.bfloat16)
    q, k, dq, dk = call.run(triton_ref.rope)
    for actual, original in ((q, call.q), (k, call.k), (dq, call.dq), (dk, call.dk)):
        np.testing.assert_array_equal(actual[..., 24:], original[..., 24:].double().numpy())


def test_mutants_fail():
    call = Call(SHAPES["gqa 3"], torch.float32)
    off = call.frequencies.clone()
    off[-1] *= 1 + 2**-20

    def swapped_halves(q_BTHD, k_BTKD, **options):
        swap = lambda x: torch.cat(x.split(10, dim=-1)[::-1], dim=-1)  # noqa: E731
        q, k = triton_ref.rope(swap(q_BTHD), swap(k_BTKD), **options)
        return swap(q), swap(k)

    def dropped_head(q_BTHD, k_BTKD, **options):
        q, k = triton_ref.rope(q_BTHD.clone(), k_BTKD.clone(), **options)
        return torch.cat([q[:, :, :-1], q_BTHD[:, :, -1:]], 2), torch.cat([k[:, :, :-1], k_BTKD[:, :, -1:]], 2)

    assert max(call.ratios()) <= 1
    assert min(call.ratios(positions_BT=call.positions + 1)) > 1
    assert min(call.ratios(inverse_frequencies_F=off)) > 1
    assert min(call.ratios(swapped_halves)) > 1
    assert min(call.ratios(dropped_head)) > 1
    phase = Call(SHAPES["gqa 3"], torch.bfloat16)
    assert min(phase.ratios(inverse_frequencies_F=phase.frequencies + 0.03)) > 1


def test_bad_arguments_are_refused():
    q, k = torch.zeros(1, 4, 2, 8), torch.zeros(1, 4, 1, 8)
    positions, frequencies = torch.zeros(1, 4, dtype=torch.int32), torch.zeros(4)
    leaf = q.clone().requires_grad_()
    for message, arguments in (
        ("do not fit; expected", (q, k[:, :3], positions, frequencies)),
        ("do not fit; expected", (q, k[..., :6], positions, frequencies)),
        (r"positions \[1, 4\] torch.int64 do not fit", (q, k, positions.long(), frequencies)),
        (r"positions \[1, 3\]", (q, k, positions[:, :3], frequencies)),
        ("torch.float64; expected float32", (q, k, positions, frequencies.double())),
        ("5 frequencies do not fit head_dim=8; use 1 to D / 2", (q, k, positions, torch.zeros(5))),
        ("dtype torch.float64 of k is not supported", (q, k.double(), positions, frequencies)),
        (r"q \[1, 4, 2, 8\] is not contiguous", (torch.zeros(1, 2, 4, 8).transpose(1, 2), k, positions, frequencies)),
        (r"q is a leaf that requires grad .* pass q.clone\(\)", (leaf, k, positions, frequencies)),
        ("tensors on cpu, meta", (q, k, positions, frequencies.to("meta"))),
    ):
        with pytest.raises(ValueError, match=message) as error:
            triton_ref.rope(*arguments)
        assert "\n" not in str(error.value)
