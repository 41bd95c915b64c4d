"""Models with quantized weights: equal to dequantized models, and trained without storing those."""

from __future__ import annotations

import argparse
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lcjax
from lcjax import step
from lcjax.config.policies import POLICIES
from lcjax.errors import InputError
from lcjax.model import Llama, ModelSettings, llama, lora
from lcjax.ops import nf4
from lcjax.weights import load_model_files, load_tokenizer
from tests.support.jaxprs import equations
from tests.support.oracles import QUICK_TO_COMPILE, make_batch, make_oracle, split
from tests.support.settings import model_settings
from tests.support.thin import thinned

# Rows are multiples of 64. All other axes have different sizes.
FIELDS = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "attention_bias": True,
    "tie_word_embeddings": False,
}
ROWS, TOKENS = 2, 29


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    return make_oracle(tmp_path_factory.mktemp("model"), **FIELDS)


@pytest.fixture(scope="module")
def trees(oracle):
    """(config, quantized parameters, dequantized parameters)."""
    config, quantized, _ = load_model_files(oracle.directory, "float32", quantize="nf4")
    return config, quantized, dequantized(quantized)


def dequantized(tree):
    """Returns the tree with arrays [L, O, I] in place of quantized weights."""
    if not isinstance(tree, dict):
        return tree
    if nf4.is_quantized(tree):
        layers = [dict(zip(tree, leaves, strict=True)) for leaves in zip(*tree.values(), strict=True)]
        return jnp.stack([nf4.dequantize(layer, jnp.float32) for layer in layers])
    return {name: dequantized(value) for name, value in tree.items()}


def model_of(config, params, oracle, **settings) -> Llama:
    model = Llama(config, params, model_settings(TOKENS, config, **settings))
    return lcjax.load_adapter(model, oracle.adapter)


def batch():
    return make_batch(FIELDS["vocab_size"], ROWS, TOKENS, documents=2)


def test_the_parameters_are_not_changed(trees):
    config, quantized, _ = trees
    params = Llama(config, quantized, ModelSettings(TOKENS)).params
    assert jax.tree.structure(params) == jax.tree.structure(quantized)
    assert all(jax.tree.leaves(jax.tree.map(lambda found, given: found is given, params, quantized)))


def test_only_the_layers_linear_maps_are_quantized(trees, oracle):
    config, quantized, values = trees
    _, plain, _ = load_model_files(oracle.directory, "float32")
    for module in config.linear_shapes():
        *parents, name, _ = config.family.adaptable[module].path
        node, before, after = quantized, plain, values
        for parent in (*parents, name):
            node, before, after = node[parent], before[parent], after[parent]
        assert nf4.is_quantized(node["weight"])
        assert np.abs(before.pop("weight") - after["weight"]).max() > 0
        node_without = {key: leaf for key, leaf in node.items() if key != "weight"}
        jax.tree.map(np.testing.assert_array_equal, node_without, before)
    jax.tree.map(np.testing.assert_array_equal, quantized["embed_tokens"], plain["embed_tokens"])
    jax.tree.map(np.testing.assert_array_equal, quantized["lm_head"], plain["lm_head"])


def loss_and_gradients(model: Llama) -> list[jax.Array]:
    """Returns the loss, and the gradients of the adapter's leaves."""
    trainable, frozen, _ = split(model)
    objective = step.Objective(model.config, model.settings)
    compiled = jax.jit(jax.value_and_grad(objective.loss, has_aux=True), compiler_options=QUICK_TO_COMPILE)
    (loss, _), gradients = compiled(trainable, frozen, batch())
    return [loss, *jax.tree.leaves(gradients)]


@pytest.mark.parametrize("policy", thinned(["none", "offload_attn"], lambda policy: policy == "offload_attn"))
def test_loss_and_gradients_are_those_of_the_values(trees, oracle, policy):
    config, quantized, values = trees
    found, expected = (
        loss_and_gradients(model_of(config, params, oracle, use_gradient_checkpointing=policy))
        for params in (quantized, values)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_one_code_off_by_one_is_found(trees, oracle):
    config, quantized, values = trees
    changed = jax.tree.map(lambda leaf: leaf, quantized)
    weight = changed["layers"]["self_attn"]["v_proj"]["weight"]
    weight["codes"] = weight["codes"].at[1, 5, 7].add(1)
    # The policy of the test above, whose compiled programs serve here too.
    found, expected = (
        loss_and_gradients(model_of(config, params, oracle, use_gradient_checkpointing="offload_attn"))
        for params in (changed, values)
    )
    assert found[0] != expected[0]


def saved_weights(trees, oracle, policy: str) -> set[tuple[int, ...]]:
    """Returns the shapes of saved arrays that are as large as dequantized weights of all layers."""
    config, quantized, _ = trees
    model = model_of(config, quantized, oracle, use_gradient_checkpointing=policy)
    trainable, frozen, _ = split(model)
    objective = step.Objective(model.config, model.settings)
    jaxpr = jax.make_jaxpr(jax.grad(objective.loss, has_aux=True))(trainable, frozen, batch())
    sizes = {config.num_hidden_layers * math.prod(shape) for shape in config.linear_shapes().values()}
    return {
        variable.aval.shape
        for equation in equations(jaxpr)
        if equation.primitive.name == "scan"
        for variable in equation.outvars
        if math.prod(variable.aval.shape) in sizes
    }


@pytest.mark.parametrize("policy", POLICIES)
def test_no_dequantized_weight_is_saved(trees, oracle, policy):
    assert saved_weights(trees, oracle, policy) == set()


def test_without_a_policy_they_would_be_saved(trees, oracle, monkeypatch):
    monkeypatch.setattr(llama, "checkpoint_layer", lambda layer, policy: layer)
    config = trees[0]
    stacks = {(config.num_hidden_layers, *shape) for shape in config.linear_shapes().values()}
    assert saved_weights(trees, oracle, "none") == stacks


def test_quantized_weights_cannot_be_trained(trees):
    _, quantized, _ = trees
    with pytest.raises(InputError, match=r"layers\.mlp\.down_proj\.weight is quantized and cannot be trained itself"):
        lora.trainable_mask(quantized, lora.everything)
    assert not any(jax.tree.leaves(lora.trainable_mask(quantized, lora.adapters_only)))


def train(model: Llama, batch, learning_rate: float, steps: int = 4) -> list[float]:
    """Trains on one batch; returns the losses. All of the adapter must change, and nothing else."""
    trainable, frozen, _ = split(model)
    before = jax.tree.map(np.array, (trainable, frozen))
    optimizer = optax.adamw(learning_rate)
    state = step.init_state(optimizer, trainable, 0)
    train_step = step.jit_train_step(step.Objective(model.config, model.settings), optimizer)
    losses = []
    for _ in range(steps):
        state, metrics = train_step(state, frozen, {name: values[None] for name, values in batch.items()})
        losses.append(float(metrics.loss))
    jax.tree.map(np.testing.assert_array_equal, frozen, before[1])
    changed = jax.tree.map(lambda new, old: bool((new != old).any()), state.trainable, before[0])
    assert all(jax.tree.leaves(changed))
    return losses


def test_the_adapter_learns_and_no_bit_of_the_base_changes(trees, oracle):
    config, quantized, _ = trees
    losses = train(model_of(config, quantized, oracle), batch(), learning_rate=1e-2)
    assert losses == sorted(losses, reverse=True)


def test_merging_dequantizes(trees, oracle, tmp_path):
    config, quantized, values = trees
    model = model_of(config, quantized, oracle)
    lcjax.save_merged(model, tmp_path)
    again_config, again, _ = load_model_files(tmp_path, "float32")
    assert again_config == config
    adapted = model_of(config, values, oracle)
    expected = lora.merge(adapted.params, model.settings.lora.scaling)
    jax.tree.map(np.testing.assert_array_equal, again, expected)


def test_rows_that_cannot_be_quantized_are_refused_before_a_weight_is_read(tmp_path):
    directory = make_oracle(tmp_path, adapter=False, **{**FIELDS, "intermediate_size": 80}).directory
    with pytest.raises(
        InputError, match="down_proj has rows of 80 values, and quantize='nf4' needs a multiple of 64; omit it"
    ):
        load_model_files(directory, "float32", quantize="nf4")


@pytest.fixture(scope="module")
def argparse_source(smollm2):
    """A batch of 128 tokens of Python."""
    tokenizer = load_tokenizer(smollm2)
    ids = np.array(tokenizer(inspect.getsource(argparse))["input_ids"][:129], np.int32)[None]
    return {
        "tokens": ids[:, :-1],
        "labels": ids[:, 1:],
        "positions": np.arange(128, dtype=np.int32)[None],
        "segment_ids": np.ones((1, 128), np.int32),
    }


def mean_loss(model: Llama, batch) -> float:
    return float(step.jit_token_scores()(model, batch).losses.mean())


def with_uniform_levels(params, config):
    """Quantizes blocks of 64 to fifteen uniform levels, for comparison with NF4."""
    changed = jax.tree.map(lambda leaf: leaf, params)
    for module in config.linear_shapes():
        node = changed
        for key in config.family.adaptable[module].path[:-1]:
            node = node[key]
        blocks = node["weight"].reshape(-1, 64)
        step_size = jnp.abs(blocks).max(axis=1, keepdims=True) / 7
        node["weight"] = (jnp.round(blocks / step_size) * step_size).reshape(node["weight"].shape)
    return changed


def test_nf4_is_closer_to_the_weights_of_smollm2_than_uniform_levels(smollm2):
    config, params, _ = load_model_files(smollm2, "float32")
    params["layers"] = jax.tree.map(lambda leaf: leaf[:1], params["layers"])
    uniform = with_uniform_levels(params, config)
    for module in config.linear_shapes():
        weight, rounded = params, uniform
        for key in config.family.adaptable[module].path:
            weight, rounded = weight[key], rounded[key]
        in_nf4 = nf4.dequantize(nf4.quantize(np.asarray(weight[0])), jnp.float32)
        assert jnp.linalg.norm(in_nf4 - weight[0]) < jnp.linalg.norm(rounded[0] - weight[0]), module


@pytest.mark.slow
def test_nf4_is_better_than_uniform_levels_for_smollm2(smollm2, argparse_source):
    """Nats per token: 3.151 in float32, 3.343 in NF4, 3.530 with uniform levels."""
    config, params, _ = load_model_files(smollm2, "float32")
    _, quantized, _ = load_model_files(smollm2, "float32", quantize="nf4")
    settings = ModelSettings(256)
    losses = [
        mean_loss(Llama(config, tree, settings), argparse_source)
        for tree in (params, quantized, with_uniform_levels(params, config))
    ]
    assert losses == sorted(losses)


@pytest.mark.slow
def test_qlora_trains_smollm2(smollm2, argparse_source):
    model, _ = lcjax.from_pretrained(smollm2, 256, "float32", quantize="nf4")
    losses = train(lcjax.get_peft_model(model, r=8), argparse_source, learning_rate=1e-3)
    assert losses == sorted(losses, reverse=True)
