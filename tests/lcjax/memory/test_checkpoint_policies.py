"""Checkpoint policies: the same numbers, and what each saves, where, and recomputes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcjax import step
from lcjax.config import Execution, ExecutionRequest
from lcjax.config.execution import layer_forms
from lcjax.config.policies import POLICIES, check_policy
from lcjax.errors import InputError
from tests.support.jaxprs import count, equations
from tests.support.oracles import (
    QUICK_TO_COMPILE,
    Oracle,
    jax_gradients,
    make_batch,
    make_oracle,
    split,
    with_random_adapter,
)
from tests.support.shapes import MODEL_COMMON, MODELS
from tests.support.thin import thinned

LAYERS, HIDDEN = MODEL_COMMON["num_hidden_layers"], MODEL_COMMON["hidden_size"]
ROWS, TOKENS = 2, 29
HEADS, HEAD_DIM = 6, 20


@pytest.fixture(scope="module")
def oracle(tmp_path_factory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("model"), **MODELS["untied gqa 3, odd head_dim"])


def batch() -> dict[str, np.ndarray]:
    return make_batch(MODEL_COMMON["vocab_size"], ROWS, TOKENS, documents=2)


@pytest.fixture(scope="module")
def unrecomputed(oracle):
    """Loss and gradients without recomputation."""
    return jax_gradients(oracle.model(use_gradient_checkpointing="none"), batch(), 2, same_bits=True)


@pytest.mark.parametrize("policy", thinned(["full", "offload", "offload_attn"], lambda policy: policy != "offload"))
def test_policies_give_the_same_loss_and_gradients_bitwise(oracle, unrecomputed, policy):
    loss, gradients = jax_gradients(oracle.model(use_gradient_checkpointing=policy), batch(), 2, same_bits=True)
    assert loss == unrecomputed[0]
    jax.tree.map(np.testing.assert_array_equal, gradients, unrecomputed[1])


def test_aliases_are_the_same_program(oracle):
    assert str(gradient_jaxpr(oracle, "unsloth")) == str(gradient_jaxpr(oracle, "offload"))
    assert str(gradient_jaxpr(oracle, "auto")) == str(gradient_jaxpr(oracle, "none"))
    assert str(gradient_jaxpr(oracle, "full")) != str(gradient_jaxpr(oracle, "none"))


def test_a_recomputed_layer_has_the_same_dropout(oracle, tmp_path):
    dropping = with_random_adapter(oracle, tmp_path, target_modules=["down_proj"], lora_dropout=0.5)
    results = []
    for policy in ("none", "offload_attn"):
        model = dropping.model(use_gradient_checkpointing=policy)
        trainable, frozen, _ = split(model)
        objective = step.Objective(model.config, model.settings)
        value_and_grad = jax.jit(jax.value_and_grad(objective.loss, has_aux=True), compiler_options=QUICK_TO_COMPILE)
        results.append(value_and_grad(trainable, frozen, batch(), jax.random.key(0)))
        assert results[-1][0][0] != value_and_grad(trainable, frozen, batch(), jax.random.key(1))[0][0]
    jax.tree.map(np.testing.assert_array_equal, *results)


@functools.cache
def gradient_jaxpr(oracle: Oracle, policy: str):
    model = oracle.model(use_gradient_checkpointing=policy)
    trainable, frozen, _ = split(model)
    objective = step.Objective(model.config, model.settings)
    return jax.make_jaxpr(jax.grad(objective.loss, has_aux=True))(trainable, frozen, batch())


def stacked_residuals(jaxpr, *, on_host: bool) -> set[tuple[int, ...]]:
    """Returns the shapes [L, B, T, ...] of the activations saved by the loop over layers.

    Only activations in the given memory count.
    """
    return {
        variable.aval.shape
        for equation in equations(jaxpr)
        if equation.primitive.name == "scan"
        for variable in equation.outvars
        if variable.aval.shape[:1] == (LAYERS,)
        and ROWS in variable.aval.shape[1:]
        and (variable.aval.memory_space == jax.memory.Space.Host) == on_host
    }


INPUT = (LAYERS, ROWS, TOKENS, HIDDEN)
ATTENTION_OUTPUT = (LAYERS, ROWS, TOKENS, HEADS, HEAD_DIM)


def test_full_saves_only_the_layers_inputs(oracle):
    jaxpr = gradient_jaxpr(oracle, "full")
    assert stacked_residuals(jaxpr, on_host=False) == {INPUT}
    assert stacked_residuals(jaxpr, on_host=True) == set()


def test_offload_saves_the_layers_inputs_on_the_host_and_nothing_on_the_device(oracle):
    jaxpr = gradient_jaxpr(oracle, "offload")
    assert stacked_residuals(jaxpr, on_host=True) == {INPUT}
    assert stacked_residuals(jaxpr, on_host=False) == set()


def test_offload_attn_also_saves_the_attention(oracle):
    jaxpr = gradient_jaxpr(oracle, "offload_attn")
    on_host = stacked_residuals(jaxpr, on_host=True)
    assert {INPUT, ATTENTION_OUTPUT} < on_host
    (lse,) = on_host - {INPUT, ATTENTION_OUTPUT}
    assert np.prod(lse) in (
        LAYERS * ROWS * TOKENS * HEADS,
        2 * LAYERS * ROWS * TOKENS * HEADS,
    )  # as one array or as two parts
    assert stacked_residuals(jaxpr, on_host=False) == set()


def test_none_saves_everything_on_the_device(oracle):
    jaxpr = gradient_jaxpr(oracle, "none")
    assert {INPUT, ATTENTION_OUTPUT} < stacked_residuals(jaxpr, on_host=False)
    assert stacked_residuals(jaxpr, on_host=True) == set()


@pytest.mark.parametrize(("policy", "passes"), [("none", 2), ("offload_attn", 2), ("full", 3), ("offload", 3)])
def test_attention_is_recomputed_only_if_necessary(oracle, policy, passes):
    """Each pass of attention (forward, backward or recomputed) is a loop with dynamic bounds."""
    assert count(gradient_jaxpr(oracle, policy), "while") == passes


def test_offload_attn_still_recomputes_the_projections(oracle):
    products = {policy: count(gradient_jaxpr(oracle, policy), "dot_general") for policy in POLICIES}
    assert products["none"] < products["offload_attn"] < products["offload"] == products["full"]


def test_auto_and_the_aliases():
    def policy_of(requested, tokens):
        forms = layer_forms(ExecutionRequest(use_gradient_checkpointing=requested), attention_has_passes=False)
        return Execution(forms=forms).form(tokens).policy

    assert policy_of("auto", 4096) == "none"
    assert policy_of("auto", 4097) == "full"
    assert policy_of("auto", 32_768) == "full"
    assert policy_of("auto", 32_769) == "offload"
    assert policy_of("unsloth", 17) == "offload"
    for policy in POLICIES:
        assert policy_of(policy, 32_768) == policy


@pytest.mark.parametrize("policy", ["none", "full"])
def test_saving_on_the_device_is_refused_above_32768_tokens(oracle, policy):
    message = rf"use_gradient_checkpointing='{policy}' at 32,769 tokens .* use 'offload', 'offload_attn' or 'auto'"
    with pytest.raises(InputError, match=message):
        check_policy(policy, 32_769)
    tokens = jax.ShapeDtypeStruct((1, 32_769), jnp.int32)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(oracle.model(use_gradient_checkpointing=policy), tokens)


def test_offloading_is_allowed_above_32768_tokens(oracle):
    tokens = jax.ShapeDtypeStruct((1, 40_000), jnp.int32)
    for policy in ("auto", "unsloth", "offload", "offload_attn"):
        logits = jax.eval_shape(oracle.model(use_gradient_checkpointing=policy), tokens)
        assert logits.shape == (1, 40_000, MODEL_COMMON["vocab_size"])


def test_an_unknown_policy_is_refused():
    with pytest.raises(
        InputError, match="'everything' is unknown; use one of auto, none, full, offload, offload_attn, unsloth"
    ):
        check_policy("everything", 1)
