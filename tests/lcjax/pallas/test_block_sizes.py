"""lcjax.pallas.triton.block_sizes: every kernel fits the shared memory of every supported GPU."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcjax import ops
from lcjax.ops.attention import reference
from lcjax.pallas.triton.block_sizes import (
    BLOCK_SIZES,
    H100,
    SMALL_BLOCK_SIZES,
    block_sizes_for,
    traced_for,
    traced_gpu,
)
from lcjax.plan.compiling.aot import gpu_names
from lcjax_scripts.codegen.compile_pallas import compile_attention, device_of
from tests.support.compiling import QUICKEST_TO_COMPILE
from tests.support.numerics import tree_error_ratio
from tests.support.thin import thinned

RTX = "rtx4090"
LITTLE = 101_376


def test_the_choice_depends_on_the_target_gpu():
    assert traced_gpu() == H100  # no GPU here
    for gpu in gpu_names():
        with traced_for(device_of(gpu)):
            large, hopper = gpu in ("h100-80gb", "h200", "b200"), gpu in ("h100-80gb", "h200")
            assert (traced_gpu().shared_memory == H100.shared_memory) == large
            assert traced_gpu().is_hopper == hopper
            tile = (BLOCK_SIZES if large else SMALL_BLOCK_SIZES)["attention_forward", 128, 2]
            assert block_sizes_for("attention_forward", 128, 2) == dataclasses.replace(tile, wait_for_wgmma=hopper)
            assert block_sizes_for("attention_forward", 96, 2) == block_sizes_for("attention_forward", 128, 2)
            assert block_sizes_for("attention_forward", 64, 2).wait_for_wgmma == hopper
            assert block_sizes_for("attention_dq", 256, 2).from_registers is False
            tile = (BLOCK_SIZES if large else SMALL_BLOCK_SIZES)["attention_dkv", 64, 2]
            assert block_sizes_for("attention_dkv", 64, 2) == dataclasses.replace(tile, from_registers=hopper)
    assert traced_gpu() == H100


@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    thinned(
        [(64, "bfloat16"), (80, "float16"), (128, "bfloat16"), (256, "bfloat16"), (64, "float32"), (256, "float32")],
        lambda case: case in [(128, "bfloat16"), (64, "float32")],
    ),
)
def test_every_kernel_fits_an_rtx(head_dim, dtype):
    for kernel in compile_attention(RTX, head_dim, dtype):
        assert 0 < kernel.shared_memory <= LITTLE, kernel


@pytest.mark.parametrize("head_dim", thinned([64, 96, 128, 256], lambda head_dim: head_dim == 128))
def test_every_kernel_fits_a_b200(head_dim):
    for kernel in compile_attention("b200", head_dim, "bfloat16"):
        assert 0 < kernel.shared_memory <= H100.shared_memory, kernel
        assert "wgmma" not in kernel.ptx, kernel


def value_and_gradients(attend, inputs):
    q, k, v, dout = inputs
    out, pull_back = jax.vjp(attend, q, k, v)
    return out, *pull_back(dout)


@pytest.mark.parametrize("head_dim", thinned([128, 256], lambda head_dim: head_dim == 128))
def test_values_with_the_small_block_sizes(head_dim):
    tokens, rng = 300, np.random.default_rng(0)
    shapes = [(1, tokens, heads, head_dim) for heads in (2, 1, 1, 2)]
    inputs = [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]
    segments = jnp.zeros((1, tokens), jnp.int32)
    mask = reference.attention_mask(segments, segments, causal=True, query_offset=0)

    def plain(q, k, v):
        return reference.attention(q, k, v, mask, scale=head_dim**-0.5)[0]

    def computed(attend, inputs):
        compute = functools.partial(value_and_gradients, attend)
        return jax.jit(compute, compiler_options=QUICKEST_TO_COMPILE)(inputs)

    in_dtype = computed(plain, inputs)
    with jax.enable_x64(True):
        exact = jax.tree.map(np.asarray, computed(plain, [x.astype(jnp.float64) for x in inputs]))
    attend = functools.partial(ops.attention, implementation="pallas")
    with traced_for(device_of(RTX)):
        actual = computed(attend, inputs)
        mutant = computed(functools.partial(attend, scale=head_dim**-0.5 * 1.05), inputs)
    assert tree_error_ratio(actual, in_dtype, exact) <= 1
    assert tree_error_ratio(mutant, in_dtype, exact) > 1


def test_block_sizes_that_do_not_fit_are_detected(monkeypatch):
    monkeypatch.delitem(SMALL_BLOCK_SIZES, ("attention_forward", 128, 2))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Shared memory size limit exceeded"):
        compile_attention(RTX, 128, "bfloat16")
