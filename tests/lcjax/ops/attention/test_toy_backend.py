"""A new implementation of attention is an object and a line; all other code finds it by name."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcjax import ops
from lcjax.config import MemorySettings
from lcjax.config.families import AttentionView
from lcjax.config.parallel.mesh import ONE_DEVICE
from lcjax.errors import InputError
from lcjax.model import Llama
from lcjax.ops.attention import registry
from lcjax.ops.attention.backend import Backend
from lcjax.ops.attention.call import AttentionCall
from lcjax.ops.attention.parallel import passes_over
from lcjax.ops.attention.passes import backend_with_passes
from lcjax.train.arguments import RunArguments
from lcjax.weights import load_model_files
from tests.support.settings import model_settings


class Toy:
    """Plain attention over all pairs, which counts its calls and refuses unsupported ones."""

    def __init__(self):
        self.calls = 0

    def refusal(self, call: AttentionCall) -> str | None:
        if call.window is not None:
            return f"does not support window={call.window}; use attention='xla'"
        return None

    def run(self, call: AttentionCall):
        self.calls += 1
        heads = call.q_BTHD.shape[2] // call.k_BSKD.shape[2]
        k_BSHD, v_BSHD = (jnp.repeat(x, heads, axis=2) for x in (call.k_BSKD, call.v_BSKD))
        scores_BHTS = jnp.einsum("bthd,bshd->bhts", call.q_BTHD, k_BSHD) * call.scale
        b, h, q, k = jnp.ogrid[tuple(slice(n) for n in scores_BHTS.shape)]
        weights_BHTS = jax.nn.softmax(jnp.where(call.mask(b, h, q, k), scores_BHTS, -jnp.inf))
        return jnp.einsum("bhts,bshd->bthd", weights_BHTS, v_BSHD), None


@pytest.fixture
def toy(monkeypatch) -> Toy:
    toy = Toy()
    monkeypatch.setitem(registry.BACKENDS, "toy", Backend("toy", toy.refusal, toy.run, takes_segments=True))
    return toy


def test_the_operation_runs_it(toy):
    draw = np.random.default_rng(0)
    q, k, v = (jnp.asarray(draw.normal(size=(2, 12, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    segments = jnp.asarray([[1] * 5 + [2] * 7] * 2)
    packed = {"query_segments_BT": segments, "key_segments_BS": segments}
    np.testing.assert_allclose(
        ops.attention(q, k, v, **packed, implementation="toy"),
        ops.attention(q, k, v, **packed, implementation="xla"),
        atol=1e-6,
    )
    assert toy.calls == 1


def test_what_it_refuses_and_what_is_unknown_are_named(toy):
    x = jnp.zeros((1, 4, 2, 8))
    with pytest.raises(InputError, match="attention='toy' does not support window=2; use attention='xla'"):
        ops.attention(x, x, x, window=2, implementation="toy")
    with pytest.raises(InputError, match="use one of auto, pallas, mosaic, cudnn, fa3, xla, toy"):
        ops.attention(x, x, x, implementation="tow")


def test_a_model_and_a_run_accept_its_name(toy, model_dir):
    assert RunArguments(attention="toy").attention == "toy"
    config, params, _ = load_model_files(model_dir, jnp.float32)
    tokens = jnp.arange(24, dtype=jnp.int32)[None]
    by_toy, by_xla = (Llama(config, params, model_settings(24, attention=name))(tokens) for name in ("toy", "xla"))
    assert toy.calls > 0
    np.testing.assert_allclose(by_toy, by_xla, atol=1e-5)


def test_tiles_need_its_two_passes(toy, model_dir):
    config, params, _ = load_model_files(model_dir, jnp.float32)
    settings = model_settings(24, attention="toy", use_gradient_checkpointing="full", memory=MemorySettings(tile=8))
    with pytest.raises(InputError, match="attention='toy' does not run in tiles"):
        Llama(config, params, settings)(jnp.arange(24, dtype=jnp.int32)[None])


def test_its_passes_refuse_the_same_calls(toy, monkeypatch):
    """Layers in tiles, and layers that differ, call the passes directly."""
    backend = dataclasses.replace(registry.backend_of("xla"), name="toy", refusal=toy.refusal)
    monkeypatch.setitem(registry.BACKENDS, "toy", backend)
    passes = passes_over(ONE_DEVICE, backend_with_passes("toy"))
    arrays = [jax.random.normal(jax.random.key(i), (1, 12, 2, 8)) for i in range(3)]
    assert passes.forward(*arrays, None, None, AttentionView())[0].shape == (1, 12, 2, 8)
    with pytest.raises(InputError, match="attention='toy' does not support window=3"):
        passes.forward(*arrays, None, None, AttentionView(window=3))
