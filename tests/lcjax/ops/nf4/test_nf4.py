"""Compares NF4 with bitsandbytes on the CPU: codes, scales and values, bit for bit."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lcjax.config.precision import check_quantize
from lcjax.errors import InputError
from lcjax.ops import nf4
from lcjax.ops.nf4.format import CODEBOOK, DYNAMIC_MAP
from lcjax.ops.nf4.mean import torch_mean
from tests.support import bitsandbytes_calls as oracle

# One block; fewer blocks than a scale of scales has, as many, and more; rows with one or many
# blocks.
SHAPES = [(1, 64), (5, 64), (7, 192), (64, 256), (192, 576), (3, 11_008), (512, 1024)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_weight(shape, dtype=torch.float32, seed=0) -> torch.Tensor:
    """Returns Gaussian weights with outliers, and with row scales that cover the map."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) * torch.logspace(-3, 0, shape[0])[:, None]
    weight[torch.rand(shape, generator=generator) < 1e-3] *= 20
    return weight.to(dtype)


def ours(weight: torch.Tensor) -> dict[str, np.ndarray]:
    return nf4.quantize(weight.float().numpy())


def assert_equal_leaves(found, expected):
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        assert (found[name].dtype, found[name].shape) == (leaf.dtype, leaf.shape), name
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)


def test_the_tables_are_those_of_bitsandbytes():
    np.testing.assert_array_equal(CODEBOOK, bnb.get_4bit_type("nf4", device="cpu"))
    np.testing.assert_array_equal(DYNAMIC_MAP, bnb.create_dynamic_map())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_and_scales_are_those_of_bitsandbytes(shape, dtype):
    weight = random_weight(shape, dtype)
    assert_equal_leaves(ours(weight), oracle.leaves(*oracle.quantize(weight)))


@pytest.mark.parametrize("factor", [1.0, -0.37, 2.0**-120, 1e34])
def test_values_between_two_codes(factor):
    """Tests each boundary, and its neighbors in floating point."""
    boundaries = (CODEBOOK[:-1] + CODEBOOK[1:]) / np.float32(2)
    near = np.concatenate(
        [boundaries, np.nextafter(boundaries, np.float32(-2)), np.nextafter(boundaries, np.float32(2))]
    )
    values = np.random.default_rng(0).choice(np.concatenate([near, CODEBOOK]), (64, 256)).astype(np.float32)
    values[:, ::64] = 1.0
    weight = torch.tensor(values * np.float32(factor))
    assert_equal_leaves(ours(weight), oracle.leaves(*oracle.quantize(weight)))


SPECIAL = {
    "zeros": torch.zeros(4, 128),
    "negative zeros": -torch.zeros(4, 128),
    "one block of zeros": torch.cat([torch.zeros(1, 64), random_weight((6, 64))]),
    "all equal": torch.full((4, 128), 0.3),
    "denormal": torch.full((2, 64), 1e-42),
    "scales that differ in one": torch.cat([torch.full((300, 64), 0.5), torch.full((1, 64), 0.25)]),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_weights(name):
    weight = SPECIAL[name]
    codes, state = oracle.quantize(weight)
    leaves = ours(weight)
    assert_equal_leaves(leaves, oracle.leaves(codes, state))
    if name != "denormal":  # XLA flushes denormals to zero on a CPU
        np.testing.assert_array_equal(nf4.dequantize(leaves, jnp.float32), oracle.values(codes, state, torch.float32))


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 31, 32, 33, 127, 512, 4096, 5000, 65_536, 70_001, 1_835_008])
def test_the_mean_rounds_as_torch_does(length):
    values = np.random.default_rng(length).random(length, np.float32)
    assert torch_mean(values) == _mean_on_one_thread(values)


def test_another_order_of_the_sum_rounds_differently():
    lengths = [5000, 65_536, 70_001, 1_835_008]
    values = [np.random.default_rng(length).random(length, np.float32) for length in lengths]
    assert any(v.mean() != torch_mean(v) for v in values)
    assert any(np.float32(v.astype(np.float64).mean()) != torch_mean(v) for v in values)


def _mean_on_one_thread(values: np.ndarray) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return torch.from_numpy(values).mean().item()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_are_those_of_bitsandbytes(shape, dtype, double, compiled):
    codes, state = oracle.quantize(random_weight(shape), double=double)
    dequantize = jax.jit(nf4.dequantize, static_argnums=1) if compiled else nf4.dequantize
    found = dequantize(oracle.leaves(codes, state), jnp.dtype(dtype))
    assert found.dtype == dtype
    assert found.shape == shape
    expected = oracle.values(codes, state, getattr(torch, dtype))
    np.testing.assert_array_equal(found.astype(jnp.float32), expected.float())


def fused(weight, dtype):
    """Dequantizes with scales that are rounded once, as by a fused multiply-add."""
    scale = np.repeat(weight["absmax_scale"], 256)[: weight["absmax"].size].reshape(weight["absmax"].shape)
    exact = DYNAMIC_MAP[weight["absmax"]].astype(np.float64) * scale + weight["absmax_offset"]
    return nf4.dequantize({"codes": weight["codes"], "absmax": jnp.asarray(exact.astype(np.float32))}, dtype)


MUTANTS = {
    "nibbles swapped": lambda weight: weight | {"codes": weight["codes"] >> 4 | weight["codes"] << 4},
    "no offset": lambda weight: weight | {"absmax_offset": np.float32(0)},
    "another block's scale": lambda weight: weight | {"absmax": np.roll(weight["absmax"], 1)},
    "another scale of scales": lambda weight: weight | {"absmax_scale": np.roll(weight["absmax_scale"], 1)},
    "code off by one": lambda weight: weight | {"codes": weight["codes"] ^ 1},
}


@pytest.mark.parametrize("name", [*MUTANTS, "fused multiply-add"])
def test_mutants_are_found(name):
    codes, state = oracle.quantize(random_weight((512, 1024)))
    weight = oracle.leaves(codes, state)
    expected = oracle.values(codes, state, torch.float32)
    np.testing.assert_array_equal(nf4.dequantize(weight, jnp.float32), expected)
    found = fused(weight, jnp.float32) if name not in MUTANTS else nf4.dequantize(MUTANTS[name](weight), jnp.float32)
    assert (np.asarray(found) != expected.numpy()).any()


def test_a_search_for_the_nearest_scale_is_found():
    """bitsandbytes rounds to 65,536 steps first, so its value is not always the nearest."""
    weight = random_weight((512, 1024))
    leaves = ours(weight)
    absmax = weight.reshape(-1, 64).abs().amax(1).numpy() - leaves["absmax_offset"]
    scaled = absmax / np.repeat(leaves["absmax_scale"].astype(np.float64), 256)
    nearest = np.abs(scaled[:, None] - DYNAMIC_MAP).argmin(1)
    missed = nearest != leaves["absmax"].ravel()
    assert 0 < missed.mean() < 0.01


def test_the_leaves_have_the_declared_shapes():
    for shape in SHAPES:
        found = {name: (leaf.shape, leaf.dtype) for name, leaf in ours(random_weight(shape)).items()}
        assert found == nf4.leaf_types(*shape)


def test_rows_that_are_not_a_multiple_of_a_block_are_refused():
    with pytest.raises(InputError, match=r"\[3, 96\] cannot be quantized: NF4 needs rows of a multiple of 64 values"):
        nf4.quantize(np.zeros((3, 96), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value):
    weight = np.ones((3, 64), np.float32)
    weight[1, 5] = value
    with pytest.raises(InputError, match="holds values that are not finite"):
        nf4.quantize(weight)


def test_another_kind_is_refused():
    with pytest.raises(InputError, match="quantize='int3' is not supported; use nf4, or leave it out"):
        check_quantize("int3")
