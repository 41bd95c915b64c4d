"""Compares logits and gradients of the model with transformers and PEFT.

Positions are up to 32K, rows may be packed, and both dtypes are tested.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import lcjax
from lcjax.config import RopeScaling
from tests.support.compiling import QUICKEST_TO_COMPILE
from tests.support.numerics import error_ratio, tree_error_ratio
from tests.support.oracles import (
    Oracle,
    jax_gradients,
    make_batch,
    make_oracle,
    names_of,
    to_numpy,
    torch_gradients,
    torch_logits,
    with_random_adapter,
)
from tests.support.shapes import MODEL_COMMON, MODELS
from tests.support.thin import thinned

VOCABULARY = MODEL_COMMON["vocab_size"]
# Positions that are far apart, so that the angles are those of a long context in a short row.
FAR = np.sort(np.random.default_rng(1).choice(32_768, (2, 61), replace=False), axis=1)
POSITIONS = {"first": None, "at 32K": np.arange(32_768 - 61, 32_768), "spread over 32K": FAR}


# Together they cover several GQA ratios, tied and untied embeddings, biases, both dtypes, and each
# family.
IN_EVERY_RUN = (
    *("tied gqa 1", "untied gqa 3, odd head_dim", "untied gqa 8, biases", "bfloat16 biases, tied"),
    *("mistral, window", "ministral, alternating windows", "qwen2, tied", "qwen3"),
    *("olmo2", "gemma2", "gemma3", "gemma3, layer types, bfloat16"),
    *("smollm3, yarn, windows without RoPE, biases", "phi3, window, longrope", "qwen3, experts"),
)


# `test_families.py` compares the gradients of the others in other forms of layers.
GRADIENTS_IN_EVERY_RUN = (
    *("tied gqa 1", "untied gqa 3, odd head_dim", "untied gqa 8, biases", "bfloat16 biases, tied"),
    *("mistral, window", "qwen2, tied", "qwen3", "gemma3, layer types, bfloat16"),
)


@pytest.fixture(scope="module", params=thinned(MODELS, lambda name: name in IN_EVERY_RUN))
def oracle(request, tmp_path_factory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("model"), **MODELS[request.param])


@pytest.fixture(scope="module")
def grouped(tmp_path_factory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("model"), **MODELS["untied gqa 3, odd head_dim"])


@functools.partial(jax.jit, compiler_options=QUICKEST_TO_COMPILE)
def call(model: lcjax.Llama, *inputs) -> jax.Array:
    return model(*inputs)


def logits(model: lcjax.Llama, batch) -> jax.Array:
    return call(model, batch["tokens"], batch["positions"], batch["segment_ids"])


def logits_ratio(actual, oracle: Oracle, batch) -> float:
    with torch.no_grad():
        plain, exact = (to_numpy(torch_logits(m, batch)) for m in (oracle.plain, oracle.exact))
    return error_ratio(actual, plain, exact)


@pytest.mark.parametrize("positions", POSITIONS)
def test_logits(oracle, positions):
    batch = make_batch(VOCABULARY, 2, 61, positions=POSITIONS[positions])
    assert logits_ratio(logits(oracle.model(), batch), oracle, batch) <= 1


@pytest.mark.parametrize("oracle", thinned(MODELS, lambda name: name in GRADIENTS_IN_EVERY_RUN), indirect=True)
def test_gradients_of_every_adapter_weight(oracle):
    model = oracle.model()
    names = names_of(model)
    batch = make_batch(VOCABULARY, 2, 61, positions=FAR)
    _, actual = jax_gradients(model, batch)
    plain, exact = (torch_gradients(m, batch, names) for m in (oracle.plain, oracle.exact))
    factors = [name for name, _ in oracle.plain.named_parameters() if ".layers.0." in name and "lora" in name]
    # PEFT has gate and up of experts in one parameter, and lcjax only if the family has.
    fused = 2 * any(name.expert is not None and name.path[-2] == "gate_proj" for name in names)
    assert len(jax.tree.leaves(actual)) == len(factors) + fused >= 8
    assert tree_error_ratio(actual, plain, exact) <= 1


def test_mutants_fail(grouped):
    """Small errors in the definition of the model must each show in the logits."""
    model = grouped.model()
    batch = make_batch(VOCABULARY, 2, 61, positions=FAR, documents=3)
    assert logits_ratio(logits(model, batch), grouped, batch) <= 1

    def other(**config):
        return lcjax.Llama(dataclasses.replace(model.config, **config), model.params, model.settings)

    adapter = dataclasses.replace(model.settings.lora, lora_alpha=model.settings.lora.lora_alpha * 1.001)
    doubled = jax.tree.map(lambda x: x, model.params)
    doubled["layers"]["mlp"]["up_proj"]["lora_B"] = doubled["layers"]["mlp"]["up_proj"]["lora_B"].at[0].set(0)
    mutants = {
        "theta": other(rope_theta=model.config.rope_theta * 1.01),
        "rope type": other(rope_scaling=RopeScaling("llama3", factor=8.0)),
        "eps": other(rms_norm_eps=1e-5),
        "tied": other(tie_word_embeddings=True),
        "scaling": lcjax.Llama(model.config, model.params, dataclasses.replace(model.settings, lora=adapter)),
        "no adapter on one map of one layer": lcjax.Llama(model.config, doubled, model.settings),
    }
    for name, mutant in mutants.items():
        assert logits_ratio(logits(mutant, batch), grouped, batch) > 1, name
    for name in ("positions", "segment_ids"):
        assert logits_ratio(logits(model, batch | {name: 0 * batch[name]}), grouped, batch) > 1, name


def test_packed_logits_equal_those_of_separate_documents(grouped):
    """The same comparison detects attention across a document boundary."""
    batch = make_batch(VOCABULARY, 1, 150, documents=4)
    packed = np.asarray(logits(grouped.model(), batch))
    alone = {"exact": [], "plain": []}
    for document in np.unique(batch["segment_ids"]):
        part = {name: value[:, batch["segment_ids"][0] == document] for name, value in batch.items()}
        with torch.no_grad():
            for name, outputs in alone.items():
                outputs.append(to_numpy(torch_logits(getattr(grouped, name), part)))
    plain, exact = (np.concatenate(alone[name], axis=1) for name in ("plain", "exact"))
    assert error_ratio(packed, plain, exact) <= 1
    crossing = logits(grouped.model(), batch | {"segment_ids": np.zeros_like(batch["segment_ids"])})
    assert error_ratio(crossing, plain, exact) > 1


def test_one_token_changes_no_other_document_bitwise(grouped):
    """Documents start and end within blocks of 512, and one of them is several blocks long."""
    batch = make_batch(VOCABULARY, 1, 1300)
    borders = [0, 37, 600, 1250, 1300]
    batch["segment_ids"][0] = np.searchsorted(borders, np.arange(1300), side="right")
    batch["positions"][0] = np.concatenate([np.arange(b - a) for a, b in itertools.pairwise(borders)])
    model = grouped.model()
    before = np.asarray(logits(model, batch))
    for changed in (0, 40, 599, 700, 1299):
        tokens = batch["tokens"].copy()
        tokens[0, changed] = (tokens[0, changed] + 1) % VOCABULARY
        after = np.asarray(logits(model, batch | {"tokens": tokens}))
        own = batch["segment_ids"][0] == batch["segment_ids"][0, changed]
        np.testing.assert_array_equal(after[0, ~own], before[0, ~own])
        np.testing.assert_array_equal(after[0, :changed], before[0, :changed])
        assert (after[0, changed] != before[0, changed]).any()
        crossing = batch | {"tokens": tokens, "segment_ids": np.zeros_like(tokens)}
        if changed < borders[-2]:
            assert (np.asarray(logits(model, crossing))[0, borders[-2] :] != before[0, borders[-2] :]).any()


def test_positions_and_segments_default_to_one_document(grouped):
    batch = make_batch(VOCABULARY, 2, 61)
    model = grouped.model()
    np.testing.assert_array_equal(call(model, batch["tokens"]), logits(model, batch))


def test_batch_rows_do_not_mix(grouped):
    batch = make_batch(VOCABULARY, 3, 61)
    changed = batch["tokens"].copy()
    changed[1] = (changed[1] + 1) % VOCABULARY
    model = grouped.model()
    before, after = (np.asarray(logits(model, batch | {"tokens": t})) for t in (batch["tokens"], changed))
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert (after[1] != before[1]).any()


# SmolLM2's weights: the embedding is tied, theta is 100,000, and the GQA ratio is 3.


@pytest.fixture(scope="module")
def loaded(smollm2):
    return lcjax.from_pretrained(smollm2, max_seq_length=1024, dtype="float32")


@pytest.fixture(scope="module")
def source(loaded) -> np.ndarray:
    """The first 256 tokens of argparse."""
    return np.asarray(loaded[1](inspect.getsource(argparse))["input_ids"][:256], np.int32)[None]


@pytest.fixture(scope="module", params=thinned([4, 30], lambda layers: layers == 4))
def smollm2_oracle(request, loaded, tmp_path_factory) -> Oracle:
    """SmolLM2's first layers, or all 30 of them."""
    directory, model = tmp_path_factory.mktemp("smollm2"), loaded[0]
    config = dataclasses.replace(model.config, num_hidden_layers=request.param)
    layers = jax.tree.map(lambda x: x[: request.param], model.params["layers"])
    lcjax.save_merged(lcjax.Llama(config, model.params | {"layers": layers}, model.settings), directory / "model")
    return with_random_adapter(Oracle(directory / "model"), directory / "adapter", scale=0.01, r=4)


def test_smollm2_loss_of_argparse(loaded, source):
    log_probabilities = jax.nn.log_softmax(call(loaded[0], source), axis=-1)
    loss = -np.take_along_axis(np.asarray(log_probabilities[:, :-1]), source[:, 1:, None], axis=-1).mean()
    assert round(float(loss), 3) == 2.364  # transformers' float32 logits give 2.36385


def test_smollm2_knows_paris(loaded):
    model, tokenizer = loaded
    prompt = tokenizer("The capital of France is")["input_ids"]
    for _ in range(2):
        padded = jnp.asarray([prompt + [0] * (8 - len(prompt))])  # later tokens have no effect
        prompt = [*prompt, int(call(model, padded)[0, len(prompt) - 1].argmax())]
    assert tokenizer.decode(prompt) == "The capital of France is Paris."


def test_smollm2_logits_and_gradients(smollm2_oracle, source):
    """24 tokens of real text just below position 32,768, with an adapter on all linear layers.

    Positions have no gaps. The model was not trained with gaps, and its output for them depends on
    the last bit, in transformers too.
    """
    batch = make_batch(49_152, 1, 24, positions=np.arange(32_744, 32_768))
    batch |= {"tokens": source[:, 100:124], "labels": source[:, 101:125]}
    model = smollm2_oracle.model()
    names = names_of(model)
    ratio = logits_ratio(logits(model, batch), smollm2_oracle, batch)
    _, actual = jax_gradients(model, batch)
    plain, exact = (torch_gradients(m, batch, names) for m in (smollm2_oracle.plain, smollm2_oracle.exact))
    assert max(ratio, tree_error_ratio(actual, plain, exact)) <= 1
