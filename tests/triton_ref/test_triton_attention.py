"""Compares the interpreted Triton attention with the plain float64 reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import triton_ref
from lcjax_scripts.verify.cases import ATTENTION, ATTENTION_FEATURES, MASKS, AttentionShape
from tests.support.thin import thinned
from tests.support.triton_calls import SMALL_BLOCK_SIZES, make_call
from triton_ref import reference
from triton_ref.block_sizes import BLOCK_SIZES, KERNELS, BlockSizes
from triton_ref.segment_ranges import segment_ranges

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Each mask of the matrix alone, over several blocks, and the small named shapes. The parity harness
# has all shapes.
SHAPES = {
    name: AttentionShape(150, 8 if "sinks" in name else 1, 1, 16, **fields(150)) for name, fields in MASKS.items()
}
SHAPES |= {n: shape for n, shape in (ATTENTION | ATTENTION_FEATURES).items() if shape.tokens * shape.key_count < 30_000}
CASES = [(shape.dtype, name) for name, shape in SHAPES.items()]
CASES += [("bfloat16", name) for name in MASKS] + [("float16", name) for name in ("causal", "packed", "sinks")]
# Every shape except the largest runs in one dtype, and some shapes run in every dtype. The tests of
# mutants also run a mask with everything.
NARROW = {("bfloat16", "causal"), ("bfloat16", "packed"), ("float16", "packed")}
LARGEST = ("decoding", "sinks", "everything")
CASES = thinned(CASES, lambda case: case in NARROW or (case[0] == "float32" and case[1] not in LARGEST))


@pytest.mark.parametrize(("dtype", "name"), CASES)
def test_value_and_gradients(dtype, name):
    assert make_call(SHAPES[name], DTYPES[dtype]).ratio() <= 1


def test_scale():
    assert make_call(AttentionShape(70, 1, 1, 16), scale=0.7).ratio() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_default_block_sizes(dtype):
    """Uses the block sizes of the table, and several blocks."""
    shape = AttentionShape(300, 1, 1, 64) if dtype == "bfloat16" else AttentionShape(128, 1, 1, 128)
    assert make_call(shape, DTYPES[dtype]).ratio(block_sizes=None) <= 1


def test_queries_without_keys_give_zero():
    call = make_call(AttentionShape(130, 2, 1, 16, keys=50, batch=2))
    blind = 80
    results = call.results()
    np.testing.assert_array_equal(results["out"][:, :blind], 0)
    np.testing.assert_array_equal(results["dq_BTHD"][:, :blind], 0)
    np.testing.assert_array_equal(results["lse"][..., :blind], -np.inf)
    assert np.abs(results["out"][:, blind:]).max(axis=-1).min() > 0


def test_queries_without_keys_see_the_sink():
    call = make_call(AttentionShape(100, 2, 1, 16, keys=50, sinks=True))
    results = call.results()
    np.testing.assert_array_equal(results["out"][:, :50], 0)
    sinks = call.inputs["sinks_H"].double().numpy()[None, :, None]
    np.testing.assert_allclose(results["lse"][..., :50], np.broadcast_to(sinks, (1, 2, 50)), rtol=2**-22, atol=0)


@pytest.mark.parametrize("shape", [AttentionShape(17, 2, 1, 16, query_offset=-20), AttentionShape(5, 2, 1, 16, keys=0)])
def test_no_query_sees_a_key(shape):
    for name, result in make_call(shape).results().items():
        np.testing.assert_array_equal(result, -np.inf if name == "lse" else 0, err_msg=name)


def test_only_the_log_sum_exp_is_used():
    call = make_call(AttentionShape(40, 2, 1, 16))
    silent = dataclasses.replace(call, dout=torch.zeros_like(call.dout))
    inputs = {name: x.clone().requires_grad_() for name, x in call.inputs.items()}
    _, lse = triton_ref.attention(**inputs, return_lse=True, block_sizes=SMALL_BLOCK_SIZES)
    gradients = torch.autograd.grad(lse, list(inputs.values()), call.dlse)
    for (name, expected), actual in zip(list(silent.results().items())[2:], gradients, strict=True):
        np.testing.assert_array_equal(actual.double().numpy(), expected, err_msg=name)


def test_layout_and_repetition_do_not_change_the_bits():
    """Non-contiguous inputs and cotangents give the same bits, and so does a second run."""
    call = make_call(AttentionShape(40, 2, 1, 16, batch=2, sinks=True), torch.bfloat16)
    transposed = {name: x.transpose(0, -1).contiguous().transpose(0, -1) for name, x in call.inputs.items()}
    strided = dataclasses.replace(call, inputs=transposed, dout=call.dout.transpose(1, 2).contiguous().transpose(1, 2))
    expected = call.results()
    for results in (call.results(), strided.results()):
        for name, result in results.items():
            np.testing.assert_array_equal(result, expected[name], err_msg=name)


@pytest.mark.parametrize("offset", [2**40, 2**31 - 30, -(2**40)])
@pytest.mark.parametrize("window", [None, 2**39])
def test_distances_beyond_int32_do_not_wrap(offset, window):
    call = make_call(AttentionShape(60, 2, 1, 16))
    out = triton_ref.attention(**call.inputs, query_offset=offset, window=window)
    hidden = offset < 0 or (window is not None and offset >= window)
    near = -60 if hidden else 60
    torch.testing.assert_close(out, triton_ref.attention(**call.inputs, query_offset=near), rtol=0, atol=0)


def test_beyond_2_to_the_31_elements():
    """Uses the last keys of 2,099,200 x 4 x 256 elements; the pages before them are not touched."""
    keys = 2_099_200
    k, v = (torch.empty(1, keys, 4, 256, dtype=torch.bfloat16) for _ in range(2))
    assert k.numel() > 2**31
    call = make_call(AttentionShape(1, 4, 4, 256, keys=32), torch.bfloat16)
    k[:, -32:], v[:, -32:] = call.inputs["k_BSKD"], call.inputs["v_BSKD"]
    q = call.inputs["q_BTHD"]
    # The single block of the small call has the same keys as the last block of the large call,
    # because the order of sums depends on the block.
    tile = {"forward": BlockSizes(16, 32, 4, 2)}
    out = triton_ref.attention(q, k, v, window=16, block_sizes=tile)
    torch.testing.assert_close(out, triton_ref.attention(**call.inputs, window=16, block_sizes=tile), rtol=0, atol=0)


MUTANTS = {
    "mask one further": {"query_offset": 26},
    "mask one short": {"query_offset": 24},
    "window one wider": {"window": 41},
    "no window": {"window": None},
    "not causal": {"causal": False},
    "no scale": {"scale": 1.0},
    "no soft cap": {"soft_cap": None},
    "soft cap off by 3%": {"soft_cap": 3.1},
    "segments ignored": {"query_segments_BT": None, "key_segments_BS": None},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mutants_of_the_mask_and_the_scores_fail(dtype):
    shape = AttentionShape(
        70, 1, 1, 16, keys=100, query_offset=25, segments="packed", window=40, soft_cap=3.0, sinks=True
    )
    call = make_call(shape, DTYPES[dtype])
    assert call.ratio() <= 1
    for mutant in MUTANTS if dtype == "float32" else ("mask one further", "window one wider", "segments ignored"):
        ratios = call.ratios(call.results(**MUTANTS[mutant]))
        assert min(ratios.values()) > 1, (mutant, ratios)


def test_mutants_of_heads_and_sinks_fail():
    call = make_call(AttentionShape(24, 6, 2, 16, sinks=True))

    def ratios(attention):
        return call.ratios(call.run(attention, block_sizes=SMALL_BLOCK_SIZES, return_lse=True))

    def swapped(q_BTHD, k_BSKD, v_BSKD, **options):
        return triton_ref.attention(q_BTHD, k_BSKD.flip(2), v_BSKD.flip(2), **options)

    def interleaved(q_BTHD, k_BSKD, v_BSKD, **options):
        group = torch.arange(6).reshape(2, 3).T.reshape(-1)
        return triton_ref.attention(q_BTHD[:, :, group], k_BSKD, v_BSKD, **options)

    def shifted_sinks(sinks_H, **options):
        return triton_ref.attention(sinks_H=sinks_H + 0.01, **options)

    for mutant in (swapped, interleaved, shifted_sinks):
        assert min(ratios(mutant).values()) > 1, mutant.__name__


def test_mutants_of_the_backward_pass_fail():
    """The output is correct; only the gradients are wrong."""
    call = make_call(AttentionShape(24, 8, 1, 16, sinks=True))

    def incomplete_group_sum(q_BTHD, k_BSKD, v_BSKD, **options):
        """Computes dk and dv without the last of eight query heads."""
        most = triton_ref.attention(q_BTHD, k_BSKD, v_BSKD, **options)
        last = triton_ref.attention(q_BTHD, k_BSKD.detach(), v_BSKD.detach(), **options)
        return tuple(
            torch.cat([a[head], b[rest]], axis) for a, b, head, rest, axis in zip(most, last, *cuts, strict=True)
        )

    every = slice(None)
    cuts = (
        ((every, every, slice(0, 7)), (every, slice(0, 7))),
        ((every, every, slice(7, 8)), (every, slice(7, 8))),
        (2, 1),
    )

    def deaf_to_the_log_sum_exp(**arguments):
        out, lse = triton_ref.attention(**arguments)
        return out, lse.detach() + 0 * lse

    right = {"out", "lse"}
    for mutant, wrong in (
        (incomplete_group_sum, {"dk_BSKD", "dv_BSKD"}),
        (deaf_to_the_log_sum_exp, {"dq_BTHD", "dk_BSKD", "dsinks_H"}),
    ):
        ratios = call.ratios(call.run(mutant, block_sizes=SMALL_BLOCK_SIZES, return_lse=True))
        assert {name for name, ratio in ratios.items() if ratio > 1} == wrong, ratios
        assert max(ratios[name] for name in right) <= 1


def poisoned(call, first, last):
    """Returns the call with nan in every input and cotangent of tokens [first, last)."""

    def poison(x, dim):
        x = x.clone()
        x.narrow(dim, first, last - first).fill_(torch.nan)
        return x

    inputs = {name: poison(x, 1) for name, x in call.inputs.items()}
    return dataclasses.replace(call, inputs=inputs, dout=poison(call.dout, 1), dlse=poison(call.dlse, 2))


@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("with_segments", [True, False])
def test_hidden_blocks_are_never_touched(with_segments):
    """nan in a block that is not visible to others, and does not see them, changes no bits."""
    call = make_call(AttentionShape(128, 2, 1, 16))
    segments = torch.arange(128, dtype=torch.int32)[None] // 64
    given = {"query_segments_BT": segments, "key_segments_BS": segments} if with_segments else {}
    call = dataclasses.replace(call, options=call.options | given)
    expected, results = call.results(), poisoned(call, 64, 128).results()
    for name, tokens in (("out", 1), ("lse", 2), ("dq_BTHD", 1), ("dk_BSKD", 1), ("dv_BSKD", 1)):
        if not given and name in ("dk_BSKD", "dv_BSKD"):
            continue
        untouched, clean = (np.take(x[name], np.arange(64), tokens) for x in (results, expected))
        np.testing.assert_array_equal(untouched, clean, err_msg=name)
    assert np.isnan(results["out"][:, 64:]).all()


@pytest.mark.parametrize("order", ["packed", "arbitrary"])
def test_segment_ranges(order):
    """The ranges contain every pair with a common id, and full blocks have a single id.

    For ascending ids, the ranges are exact.
    """
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 6, (2, 100)), rng.integers(0, 6, (2, 75))
    if order == "packed":
        rows, columns = np.sort(rows, axis=1), np.sort(columns, axis=1)
    ranges = segment_ranges(torch.from_numpy(rows).int(), torch.from_numpy(columns).int(), 16, 8).numpy()
    assert ranges.shape == (2, 7, 4)
    slack = np.zeros(2, int)
    for batch, block in np.ndindex(2, 7):
        row = rows[batch, block * 16 : block * 16 + 16]
        pairs = [row[:, None] == columns[batch, None, j * 8 : j * 8 + 8] for j in range(10)]
        seen, full = (np.flatnonzero([f(pair) for pair in pairs]) for f in (np.any, np.all))
        first, full_first, full_last, last = ranges[batch, block]
        assert set(seen) <= set(range(first, last))
        assert set(range(full_first, full_last)) <= set(full)
        slack += max(0, last - first) - len(seen), len(full) - max(0, full_last - full_first)
    if order == "packed":
        np.testing.assert_array_equal(slack, 0)


def test_the_reference_on_a_case_by_hand():
    """Keys with scores 0 and log 3 have weights 1/4 and 3/4, and a sink of log 4 halves them."""

    def float64(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    def equal(actual: torch.Tensor, *expected: float) -> None:
        """Compares up to a few roundings of float64."""
        np.testing.assert_allclose(actual.flatten(), expected, rtol=2**-50, atol=0)

    q, k, v = (float64(*x).reshape(1, 2, 1, 1) for x in ((1, 1), (0, np.log(3)), (4, 8)))
    out, lse = reference.attention(q, k, v)
    equal(out, 4, 7)
    equal(lse, 0, np.log(4))
    out, lse = reference.attention(q, k, v, sinks_H=float64(np.log(4)))
    equal(out, 4 / 5, 3.5)
    equal(lse, np.log(5), np.log(8))
    out, _ = reference.attention(q, k, v, window=1)
    equal(out, 4, 8)
    cap = 0.5
    out, lse = reference.attention(q, k, v, soft_cap=cap)
    weight = np.exp(cap * np.tanh(np.log(3) / cap))
    equal(out, 4, (4 + 8 * weight) / (1 + weight))


def test_the_reference_supports_scores_wider_than_its_inputs():
    q, k, v = torch.randn(3, 2, 5, 2, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    out, lse = reference.attention(q, k, v, scores_dtype=torch.float32)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(lse, reference.attention(q.float(), k.float(), v.float())[1])
    assert not torch.equal(lse, reference.attention(q, k, v)[1].float())


def refused(message, **overrides):
    x = torch.zeros(1, 4, 2, 8)
    arguments = {"q_BTHD": x, "k_BSKD": x, "v_BSKD": x} | overrides
    with pytest.raises(ValueError, match=message) as error:
        triton_ref.attention(**arguments)
    assert "\n" not in str(error.value)


def test_bad_arguments_are_refused():
    def zeros(*sizes, dtype=torch.float32):
        return torch.zeros(*sizes, dtype=dtype)

    k3, segments = zeros(1, 4, 3, 8), zeros(1, 4, dtype=torch.int32)
    refused("do not fit; expected", k_BSKD=zeros(1, 5, 2, 8))
    refused("do not fit; expected", k_BSKD=zeros(1, 4, 2, 6), v_BSKD=zeros(1, 4, 2, 6))
    refused("do not fit; expected", q_BTHD=zeros(4, 2, 8))
    refused("2 query heads are not a multiple of 3", k_BSKD=k3, v_BSKD=k3)
    big = zeros(1, 4, 2, 257)
    refused("head_dim=257 is not supported; use 1 to 256", q_BTHD=big, k_BSKD=big, v_BSKD=big)
    refused(
        "dtypes torch.float32, torch.bfloat16, torch.float32 differ", k_BSKD=zeros(1, 4, 2, 8, dtype=torch.bfloat16)
    )
    double = zeros(1, 4, 2, 8, dtype=torch.float64)
    refused("dtype torch.float64 is not supported; cast", q_BTHD=double, k_BSKD=double, v_BSKD=double)
    refused("both queries and keys", query_segments_BT=segments)
    refused(
        r"segment ids \[1, 3\] and \[1, 4\] do not fit", query_segments_BT=segments[:, :3], key_segments_BS=segments
    )
    refused("cast both to torch.int32", query_segments_BT=segments.long(), key_segments_BS=segments)
    refused("window=0 lets a query see nothing; use 1 or more", window=0)
    refused("window=-5 lets", window=-5)
    refused("query_offset=1.5 is not an int", query_offset=1.5)
    refused("soft_cap=0.0 must be positive", soft_cap=0.0)
    refused("scale=-1.0 must be positive", scale=-1.0)
    refused(r"sinks \[3\] torch.float32 do not fit", sinks_H=zeros(3))
    refused(r"expected float32 \[2\]", sinks_H=zeros(2, dtype=torch.bfloat16))
    refused(
        "block_sizes for 'backward', which is not a kernel; use forward, dq, dkv",
        block_sizes={"backward": BlockSizes(32, 32, 4, 2)},
    )
    refused("tensors on cpu, meta; move them to one device", sinks_H=torch.zeros(2, device="meta"))


def test_block_sizes():
    assert {kernel for kernel, _, _ in BLOCK_SIZES} == set(KERNELS)
    assert set(BLOCK_SIZES) == {
        (kernel, width, size) for kernel in KERNELS for width in (16, 32, 64, 128, 256) for size in (2, 4)
    }
    with pytest.raises(ValueError, match="a step of 48 queries and 64 keys: use powers of two"):
        BlockSizes(48, 64, 4, 2)
