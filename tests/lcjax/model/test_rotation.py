"""Layers that differ in RoPE: the model's frequencies, none, or another base.

`test_families.py` compares families of which this is true with transformers.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lcjax
from lcjax import ops
from lcjax.config import LlamaConfig, LoraConfig
from lcjax.config.families import FAMILIES, LLAMA, AttentionView, Rotary
from lcjax.config.presets import PRESETS
from lcjax.generate import Generator
from lcjax.generate.sampling import Sampling
from lcjax.memory import layer_at
from lcjax.model.rotation import Rotation
from lcjax.plan.compiling.parameters import abstract_params
from lcjax.step import with_request
from tests.support.compiling import QUICK_TO_COMPILE
from tests.support.oracles import jax_gradients, make_batch
from tests.support.settings import model_settings

OWN, NONE, LOCAL = Rotary(), Rotary(rotates=False), Rotary(theta=500.0)
ORDER = (LOCAL, OWN, NONE, OWN)
WINDOW = 9
MIXED = dataclasses.replace(
    LLAMA,
    model_type="mixed",
    architecture="MixedForCausalLM",
    keys={**LLAMA.keys, "sliding_window": None},
    sees=lambda config, layer: AttentionView(
        window=config.sliding_window if ORDER[layer] == LOCAL else None, rotary=ORDER[layer]
    ),
)
SIZES = {
    "model_type": "mixed", "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": len(ORDER),
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096, "sliding_window": WINDOW,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
TOKENS = 40


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, MIXED.model_type, MIXED)
        yield


# yarn has everything of the default, and an attention factor, which not every layer may have.
@pytest.fixture(scope="module", params=[pytest.param(None, marks=pytest.mark.slow), YARN], ids=["default", "yarn"])
def model(request, registered) -> lcjax.Llama:
    """Random weights and adapters."""
    config = LlamaConfig.from_dict({**SIZES, "rope_scaling": request.param})
    adapter = LoraConfig(r=4, lora_alpha=8)
    shapes, tree = jax.tree.flatten(abstract_params(config, adapter, None))
    draw = np.random.default_rng(0)
    params = [jnp.asarray(draw.normal(0, 0.2, leaf.shape), jnp.float32) for leaf in shapes]
    return lcjax.Llama(config, jax.tree.unflatten(tree, params), model_settings(TOKENS, config, lora=adapter))


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    return make_batch(97, 2, TOKENS, documents=2)


@functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
def logits(model: lcjax.Llama, tokens, positions, segment_ids):
    return model(tokens, positions, segment_ids)


@functools.partial(jax.jit, static_argnames=("rotary", "window"), compiler_options=QUICK_TO_COMPILE)
def one_layer(model: lcjax.Llama, x_BTD, layer, rotary, window, positions, segment_ids):
    """A layer with a context in which all layers are like it.

    Without RoPE, every token is at position 0.
    """
    config = dataclasses.replace(
        model.config,
        model_type="mistral",
        sliding_window=window,
        **({} if rotary.theta is None else {"rope_theta": rotary.theta}),
        **({} if rotary == OWN else {"rope_scaling": lcjax.config.RopeScaling()}),
    )
    alike = lcjax.Llama(config, model.params, model.settings)
    context = alike.context(positions if rotary.rotates else 0 * positions, segment_ids, jnp.int32(TOKENS))
    structure, params = nnx.split(model.layers)
    return nnx.merge(structure, layer_at(params, layer))(x_BTD, context, None)[0]


@functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
def embedded(model: lcjax.Llama, tokens):
    return model.embed_tokens(tokens)


@functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
def head(model: lcjax.Llama, x_BTD):
    return model.logits(model.norm(x_BTD))


def one_by_one(model: lcjax.Llama, order, tokens, positions, segment_ids):
    """Logits without a scan; layers of one kind share a program."""
    x_BTD = embedded(model, tokens)
    for layer, rotary in enumerate(order):
        window = WINDOW if ORDER[layer] == LOCAL else None
        x_BTD = one_layer(model, x_BTD, jnp.int32(layer), rotary, window, positions, segment_ids)
    return head(model, x_BTD)


def inputs(batch):
    return batch["tokens"], batch["positions"], batch["segment_ids"]


def test_logits_are_those_of_layers_one_by_one(model, batch):
    actual = np.asarray(logits(model, *inputs(batch)))
    expected = np.asarray(one_by_one(model, ORDER, *inputs(batch)))
    np.testing.assert_array_equal(actual, expected)
    for layer, kind in ((0, OWN), (1, NONE), (2, OWN), (3, LOCAL)):
        other = (*ORDER[:layer], kind, *ORDER[layer + 1 :])
        assert np.abs(one_by_one(model, other, *inputs(batch)) - expected).max() > 1e-2, layer


def test_attention_is_compiled_once_for_layers_that_only_rotate_differently(model):
    """RoPE comes before attention, so attention needs a branch only for the window."""
    assert [view.window for view in model.config.views] == [WINDOW, None]
    assert model.config.view_of_layer == (0, 1, 1, 1)
    assert model.config.rotaries == (LOCAL, OWN, NONE)
    without = dataclasses.replace(model.config, sliding_window=None)
    assert len(without.views) == 1
    assert len(without.rotaries) == 3


def test_equal_layers_need_no_selection():
    rotation = Rotation.of_model(PRESETS["llama-3.2-1b"], 8)
    assert rotation.of_layer(jnp.int32(3)) is rotation
    assert rotation.inverse_frequencies_F.shape == (32,)
    assert rotation.attention_factor == 1.0


FORMS = (
    {"use_gradient_checkpointing": "offload", "memory": "tile=10"},
    {"use_gradient_checkpointing": "offload_attn", "memory": "tile=20,head_groups=2,save_every=2"},
)


def test_gradients_in_tiles_are_those_of_the_plain_scan(model, batch):
    def gradients(**requested):
        settings = with_request(model.settings, **requested)
        return jax_gradients(lcjax.Llama(model.config, model.params, settings), batch, same_bits=True)

    loss, plain = gradients(use_gradient_checkpointing="full")
    for form in FORMS:
        tiled_loss, tiled = gradients(
            use_gradient_checkpointing=form["use_gradient_checkpointing"], memory=form["memory"]
        )
        assert tiled_loss == pytest.approx(loss, rel=1e-6)
        for a, b in zip(jax.tree.leaves(tiled), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


def test_generation_with_the_cache_gives_the_tokens_without_it(model, batch):
    prompt = batch["tokens"][0, :20].tolist()
    found = list(Generator(model, TOKENS).generate(prompt, Sampling(), max_new_tokens=TOKENS - 20))
    ids = jnp.asarray([prompt + found])
    expected = np.asarray(model(ids)).argmax(axis=-1)[0, 19:-1].tolist()
    assert found == expected


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_a_rotation_by_zero_changes_no_bit(implementation):
    q, k = (jax.random.normal(jax.random.key(i), (2, 7, 3, 16), jnp.bfloat16) for i in range(2))
    positions = jnp.broadcast_to(jnp.int32(2**31 - 1) - jnp.arange(7), (2, 7))
    factor = jnp.float32(1.0)
    rotated = ops.rope(q, k, positions, jnp.zeros(8), attention_factor=factor, implementation=implementation)
    for before, after in zip((q, k), rotated, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_a_factor_that_layers_differ_in_gives_the_bits_of_a_constant(implementation):
    q, k = (jax.random.normal(jax.random.key(i), (2, 7, 3, 16)) for i in range(2))
    positions, frequencies = jnp.broadcast_to(jnp.arange(7), (2, 7)), jnp.asarray([1.0, 0.3, 0.01])

    def with_gradients(factor):
        rope = functools.partial(
            ops.rope,
            positions_BT=positions,
            inverse_frequencies_F=frequencies,
            attention_factor=factor,
            implementation=implementation,
        )
        out, pull_back = jax.vjp(lambda q, k: rope(q, k), q, k)
        return [*out, *pull_back(out)]

    constant, argument, other = (
        jax.jit(f)()
        for f in (lambda: with_gradients(1.25), lambda: with_gradients(jnp.float32(1.25)), lambda: with_gradients(1.0))
    )
    for a, b, c in zip(constant, argument, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.abs(np.asarray(a - c)).max() > 0.01
