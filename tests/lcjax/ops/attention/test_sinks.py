"""The two passes of attention with sinks, as layers in tiles call them, compared with float64."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcjax.config.families import AttentionView
from lcjax.ops.attention import reference, registry
from lcjax.ops.attention.backend import Backend
from lcjax.ops.attention.passes import OnOneDevice
from tests.support.compiling import QUICKEST_TO_COMPILE
from tests.support.numerics import error_ratios

BATCH, TOKENS, HEADS, KV_HEADS, HEAD_DIM = 2, 150, 8, 2, 16
SEES = AttentionView(window=20)


@pytest.fixture(scope="module")
def inputs() -> list[np.ndarray]:
    """q, k, v, sinks and the cotangent of out."""
    draw = np.random.default_rng(0)
    heads = HEADS, KV_HEADS, KV_HEADS, HEADS
    q, k, v, dout = (draw.normal(size=(BATCH, TOKENS, n, HEAD_DIM)).astype(np.float32) for n in heads)
    return [q, k, v, draw.normal(size=HEADS).astype(np.float32) + 1, dout]


@pytest.fixture(scope="module")
def segments() -> np.ndarray:
    return np.sort(np.random.default_rng(1).integers(0, 3, (BATCH, TOKENS)), axis=1).astype(np.int32)


@pytest.fixture(scope="module")
def references(inputs, segments):
    """(out, dq, dk, dv, dsinks) of the specification, in float32 and in float64."""
    apart = np.arange(TOKENS)[:, None] - np.arange(TOKENS)
    visible = (apart >= 0) & (apart < SEES.window) & (segments[:, :, None] == segments[:, None])

    def run(*inputs):
        *arrays, dout = map(jnp.asarray, inputs)

        def attend(q, k, v, sinks):
            return reference.attention(q, k, v, visible[:, None], scale=HEAD_DIM**-0.5, sinks_H=sinks)[0]

        out, pull_back = jax.vjp(attend, *arrays)
        return jax.tree.map(np.asarray, (out, *pull_back(dout)))

    plain = run(*inputs)
    with jax.enable_x64(True):
        return plain, run(*(x.astype(np.float64) for x in inputs))


def by_passes(name: str, inputs, segments) -> Any:
    passes = OnOneDevice(registry.backend_of(name))

    def run(q, k, v, sinks, dout):
        arrays = q, k, v, sinks, segments, SEES
        out, lse = passes.forward(*arrays)
        delta = jnp.swapaxes((out * dout).sum(axis=-1), 1, 2)
        return out, *passes.backward(*arrays, lse, dout, delta)

    return jax.jit(run, compiler_options=QUICKEST_TO_COMPILE)(*inputs)


@pytest.mark.parametrize("name", ["xla", "pallas"])
def test_both_passes(name, inputs, segments, references):
    assert max(error_ratios(by_passes(name, inputs, segments), *references)) <= 1


def _with_the_keys_log_sum_exp(whole: Backend) -> Backend:
    def forward(call):
        _, lse_of_keys = whole.forward(dataclasses.replace(call, sinks_H=None))
        return whole.forward(call)[0], lse_of_keys

    return dataclasses.replace(whole, forward=forward)


def _with_sinks_of_the_other_sign(whole: Backend) -> Backend:
    def backward(*arguments):
        *others, dsinks_H = whole.backward(*arguments)
        return *others, -dsinks_H

    return dataclasses.replace(whole, backward=backward)


@pytest.mark.parametrize(
    ("mutant", "wrong"), [(_with_the_keys_log_sum_exp, {1, 2, 3, 4}), (_with_sinks_of_the_other_sign, {4})]
)
def test_mutants_fail(mutant, wrong, inputs, segments, references, monkeypatch):
    monkeypatch.setitem(registry.BACKENDS, "xla", mutant(registry.backend_of("xla")))
    found = error_ratios(by_passes("xla", inputs, segments), *references)
    assert {number for number, ratio in enumerate(found) if ratio > 1} == wrong


def test_one_key_and_one_sink():
    """A key with the score 0 and a sink of log 3: the key's weight is 1/4, its gradient 3/16."""
    one = np.ones((1, 1, 1, 4), np.float32)
    sinks = np.log([3.0]).astype(np.float32)
    out, dq, dk, dv, dsinks = by_passes("xla", [0 * one, one, one, sinks, one], None)
    np.testing.assert_allclose(out, one / 4, rtol=1e-6)
    np.testing.assert_allclose(dv, one / 4, rtol=1e-6)
    np.testing.assert_allclose(dsinks, [-3 / 4], rtol=1e-6)
    np.testing.assert_allclose(dq, 4 * one * 3 / 16 * 4**-0.5, rtol=1e-6)
    np.testing.assert_allclose(dk, 0 * one)
