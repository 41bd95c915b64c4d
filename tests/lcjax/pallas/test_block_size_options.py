"""The options of block sizes do not change the result of a kernel."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from lcjax.ops.attention.masks import AllOf, Band
from lcjax.pallas.triton import attention_forward as forward
from lcjax.pallas.triton.attention import Options, kernel_spec, schedule_of
from lcjax.pallas.triton.block_sizes import BLOCK_SIZES, BlockSizes
from lcjax_scripts.codegen.compile_pallas import compile_attention
from lcjax_scripts.verify.tolerance import error_ratio

BATCH, TOKENS, HEADS, KV_HEADS, HEAD_DIM = 2, 100, 4, 2, 16
TILE = BlockSizes(32, 32, 4, 1)


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=(BATCH, TOKENS, heads, HEAD_DIM)).astype(np.float32) for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def attend(tile, inputs):
    """Returns (out, spec) of interpreted causal attention, in the dtype of the inputs."""
    q, k, v = map(jnp.asarray, inputs)
    mask = AllOf((Band(after=0),))
    spec = kernel_spec("attention_forward", Options(HEAD_DIM**-0.5, (("attention_forward", tile),)), q, k)
    visits = schedule_of(spec, mask, rows="queries")
    return forward.attention_forward(spec, q, k, v, None, mask, None, visits)[0], spec


def plain(inputs, dtype):
    q, k, v = (x.astype(dtype) for x in inputs)
    k, v = (np.repeat(x, HEADS // KV_HEADS, axis=2) for x in (k, v))
    scores = np.einsum("bthd,bshd->bhts", q, k) * dtype(HEAD_DIM**-0.5)
    scores = np.where(np.tri(TOKENS, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("programs", [1, 5])
def test_one_head_at_a_time_gives_the_same_bits(monkeypatch, inputs, programs):
    monkeypatch.setattr(forward, "MIN_PROGRAMS_PER_HEAD", programs)
    together, _ = attend(TILE, inputs)
    by_head, spec = attend(dataclasses.replace(TILE, one_head_at_a_time=True), inputs)
    assert spec.query_blocks == 4
    grid = forward.grid_order(spec, HEADS, spec.query_blocks)
    assert grid == ((4, HEADS) if programs == 1 else (HEADS, 4))
    np.testing.assert_array_equal(by_head, together)


def test_saving_registers_is_within_the_tolerance(inputs):
    exact, in_dtype = (plain(inputs, dtype) for dtype in (np.float64, np.float32))
    usual, _ = attend(TILE, inputs)
    saving, _ = attend(dataclasses.replace(TILE, save_registers=True), inputs)
    assert not np.array_equal(saving, usual)  # another order of sums
    for out in (usual, saving):
        assert error_ratio(np.asarray(out), in_dtype, exact) <= 1


def test_operands_from_registers_need_less_shared_memory(monkeypatch):
    def shared_memory():
        kernels = compile_attention("h100-80gb", 64, "bfloat16")
        return {kernel.kernel: kernel.shared_memory for kernel in kernels}

    key = "attention_dkv", 64, 2
    from_registers = shared_memory()
    monkeypatch.setitem(BLOCK_SIZES, key, dataclasses.replace(BLOCK_SIZES[key], from_registers=False))
    from_shared_memory = shared_memory()
    # Keys and values of a block: 64 x 64 numbers with two bytes each.
    assert from_shared_memory["attention_dkv"] - from_registers["attention_dkv"] == 2 * 64 * 64 * 2
    assert from_shared_memory["attention_dq"] == from_registers["attention_dq"]
