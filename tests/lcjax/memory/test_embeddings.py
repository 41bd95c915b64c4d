"""Embedding and head in host memory: the same bits, without loading them onto the device."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy

import lcjax
from lcjax.api import save_merged
from lcjax.config import MemorySettings
from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError
from lcjax.memory import fetched, place_embeddings
from lcjax.parallel.memories import is_on_host
from lcjax.step.program import build_program
from lcjax.weights import load_model_files
from tests.support.oracles import Oracle, jax_gradients, make_batch, make_oracle
from tests.support.shapes import MODEL_COMMON, MODELS
from tests.support.thin import thinned

TOKENS = 42
KINDS = ("untied gqa 3, odd head_dim", "tied gqa 1")


@pytest.fixture(scope="module", params=KINDS)
def oracle(request, tmp_path_factory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("model"), **MODELS[request.param])


def placed(oracle: Oracle, *, on_host: bool, **settings) -> lcjax.Llama:
    model = oracle.model(**settings)
    return lcjax.Llama(model.config, place_embeddings(model.params, on_host=on_host), model.settings)


def test_loss_and_gradients_are_the_same_bit_for_bit(oracle):
    """Uses two micro-batches. Each of them fetches the embeddings."""
    memory = MemorySettings(tile=14)
    models = [
        placed(oracle, on_host=on_host, use_gradient_checkpointing="offload", memory=memory)
        for on_host in (False, True)
    ]
    batch = make_batch(MODEL_COMMON["vocab_size"], 2, TOKENS, documents=3)
    expected, actual = (jax_gradients(model, batch, 2, same_bits=True) for model in models)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_without_fetching_it_does_not_run(oracle, monkeypatch):
    """JAX refuses to combine arrays in host memory with arrays on the device."""
    monkeypatch.setattr("lcjax.step.objective.fetched_for", lambda x, weight: (x, weight))
    model = placed(oracle, on_host=True)
    with pytest.raises(ValueError, match="memory_space"):
        jax_gradients(model, make_batch(MODEL_COMMON["vocab_size"], 1, TOKENS))


@pytest.mark.parametrize(
    ("on_host", "loaded_on_host"),
    thinned([(a, b) for a in (False, True) for b in (False, True)], lambda case: case[0] != case[1]),
)
def test_a_run_places_them_according_to_its_settings(oracle, loaded_on_host, on_host):
    memory = MemorySettings(embeddings_on_host=on_host)
    model = placed(oracle, on_host=loaded_on_host, memory=memory, use_gradient_checkpointing="offload")
    frozen = build_program(model.config, model.params, model.settings, TrainingArguments(), max_steps=1).frozen
    kinds = {name: frozen[name]["weight"].sharding.memory_kind for name in (*embeddings(frozen), "norm")}
    assert kinds.pop("norm") == "device"
    assert set(kinds.values()) == {"pinned_host" if on_host else "device"}


def embeddings(params) -> set[str]:
    return {"embed_tokens", "lm_head"} & params.keys()


def test_arrays_in_the_right_place_are_not_copied(oracle):
    params = oracle.model().params
    assert place_embeddings(params, on_host=False)["embed_tokens"]["weight"] is params["embed_tokens"]["weight"]
    there = place_embeddings(params, on_host=True)
    assert place_embeddings(there, on_host=True)["embed_tokens"]["weight"] is there["embed_tokens"]["weight"]
    assert not is_on_host(params["embed_tokens"]["weight"])
    weight = params["embed_tokens"]["weight"]
    assert fetched(weight) is weight


def test_the_loader_leaves_them_on_the_host(oracle):
    _, here, _ = load_model_files(oracle.directory, "float32")
    _, there, _ = load_model_files(oracle.directory, "float32", embeddings_on_host=True)
    on_host = {name for name in there if all(map(is_on_host, jax.tree.leaves(there[name])))}
    assert on_host == embeddings(there)
    assert not any(map(is_on_host, jax.tree.leaves(here)))
    jax.tree.map(np.testing.assert_array_equal, there, here)


def test_logits_and_a_merged_checkpoint_come_from_them(oracle, tmp_path):
    tokens = make_batch(MODEL_COMMON["vocab_size"], 1, TOKENS)["tokens"]
    logits, files = [], []
    for on_host in (False, True):
        model = placed(oracle, on_host=on_host)
        logits.append(jax.jit(model)(tokens))
        save_merged(model, tmp_path / str(on_host))
        files.append(safetensors.numpy.load_file(tmp_path / str(on_host) / "model.safetensors"))
    np.testing.assert_array_equal(*logits)
    jax.tree.map(np.testing.assert_array_equal, *files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"use_gradient_checkpointing": "full"},
            r"goes with a policy that uses host memory, not with .*'full'; use 'off",
        ),
        (
            {"adapter": None},
            r"is for frozen embeddings, but here they are trained; omit it, or train an adapter",
        ),
    ],
)
def test_unsupported_cases_are_refused(oracle, change, message):
    if "adapter" in change:
        oracle, change = dataclasses.replace(oracle, **change), {}
    memory = MemorySettings(embeddings_on_host=True)
    batch = make_batch(MODEL_COMMON["vocab_size"], 1, TOKENS)

    def traced():
        model = oracle.model(**{"use_gradient_checkpointing": "offload", "memory": memory} | change)
        program = build_program(model.config, model.params, model.settings, TrainingArguments(), max_steps=1)
        jax.eval_shape(program.objective.loss, program.trainable, program.frozen, batch)

    with pytest.raises(InputError, match=f"^memory=embeddings_on_host=true {message}"):
        traced()
