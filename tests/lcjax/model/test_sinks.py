"""Attention with sinks in a whole model, compared with transformers' gpt-oss in float64."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from lcjax import weights
from lcjax.config import ExecutionRequest, LlamaConfig, MemorySettings
from lcjax.errors import InputError
from lcjax.generate import Generator
from lcjax.generate.sampling import Sampling
from lcjax.memory.position_wise import PositionWise
from lcjax.model.attention import SelfAttention
from lcjax.model.params import tensor_names
from lcjax.ops import nf4
from lcjax.plan.compiling.parameters import abstract_params
from lcjax.step import resolve
from lcjax.weights.gguf import gguf_names
from tests.support import dense_gpt_oss, plain_attention
from tests.support.numerics import error_ratio, tree_error_ratio
from tests.support.oracles import (
    Oracle,
    jax_gradients,
    make_batch,
    make_oracle,
    names_of,
    torch_gradients,
    torch_logits,
    with_random_adapter,
)  # fmt: skip
from tests.support.shapes import MODEL_COMMON
from tests.support.thin import thinned

TOKENS = 42
PLAIN = {"use_gradient_checkpointing": "none"}
TILED = {"use_gradient_checkpointing": "offload", "memory": MemorySettings(tile=14)}
GROUPED = {**TILED, "memory": MemorySettings(tile=21, head_groups=2)}


@pytest.fixture(scope="module", autouse=True)
def registered():
    with dense_gpt_oss.registered():
        yield


@pytest.fixture(scope="module")
def full(tmp_path_factory, registered) -> Oracle:
    """Every weight is trained, and every sink."""
    return make_oracle(tmp_path_factory.mktemp("model"), adapter=False, **dense_gpt_oss.FIELDS)


@pytest.fixture(scope="module")
def adapted(full, tmp_path_factory) -> Oracle:
    """Only an adapter is trained, and the sinks are constants."""
    return with_random_adapter(full, tmp_path_factory.mktemp("adapter"))


def batch():
    return make_batch(MODEL_COMMON["vocab_size"], 2, TOKENS, documents=3)


@pytest.fixture(scope="module")
def references(full, adapted):
    """The gradients of both kinds of training, by torch in float32 and in float64."""
    return {
        oracle: [torch_gradients(model, batch(), names_of(oracle.model())) for model in (oracle.plain, oracle.exact)]
        for oracle in (full, adapted)
    }


def ratios(oracle: Oracle, references, **settings) -> tuple[float, float]:
    """The error ratios of all gradients, and of those of sinks; 0 if these are constants."""
    plain, exact = references[oracle]
    _, gradients = jax_gradients(oracle.model(**settings), batch())
    if oracle.adapter is not None:
        return tree_error_ratio(gradients, plain, exact), 0.0
    of_sinks = (tree["layers"]["self_attn"]["sinks"] for tree in (gradients, plain, exact))
    return tree_error_ratio(gradients, plain, exact), error_ratio(*map(np.asarray, of_sinks))


def test_the_reference_is_transformers_own_attention(full):
    """The plain attention, which has a float64 softmax, is the eager one of gpt-oss."""
    tokens = torch.from_numpy(batch()["tokens"]).long()
    with torch.no_grad():
        plain = full.exact(input_ids=tokens, use_cache=False).logits
        full.exact.set_attn_implementation("eager")
        eager = full.exact(input_ids=tokens, use_cache=False).logits
        full.exact.set_attn_implementation(plain_attention.NAME)
    np.testing.assert_allclose(plain, eager, rtol=0, atol=1e-5 * eager.abs().max())


@pytest.mark.parametrize(
    "settings",
    thinned([PLAIN, TILED, GROUPED, {**TILED, "attention": "pallas"}], lambda settings: settings in (PLAIN, GROUPED)),
    ids=str,
)
def test_gradients_of_every_weight(settings, full, references):
    assert max(ratios(full, references, **settings)) <= 1


@pytest.mark.parametrize("settings", thinned([TILED, GROUPED], lambda settings: settings is GROUPED), ids=str)
def test_gradients_of_an_adapter(settings, adapted, references):
    assert max(ratios(adapted, references, **settings)) <= 1


def test_frozen_sinks_have_no_gradient(adapted):
    gradients = jax_gradients(adapted.model(**GROUPED), batch())[1]
    assert "sinks" not in gradients["layers"]["self_attn"]


def test_sinks_without_a_gradient_are_found(full, references, monkeypatch):
    """Mutant: the memory engine treats sinks as constants."""
    sinks = PositionWise.sinks
    monkeypatch.setattr(PositionWise, "sinks", lambda self, trainable: jax.lax.stop_gradient(sinks(self, trainable)))
    jax.clear_caches()
    assert min(ratios(full, references, **TILED)) > 1


def test_sinks_of_other_heads_are_found(full, references, monkeypatch):
    """Mutant: every group of heads has the sinks of the first one."""
    heads = SelfAttention.heads

    def of_the_first(self, group, groups):
        own = heads(self, group, groups)
        own.sinks = heads(self, 0 * group, groups).sinks
        return own

    monkeypatch.setattr(SelfAttention, "heads", of_the_first)
    jax.clear_caches()
    assert min(ratios(full, references, **GROUPED)) > 1


def test_generating_with_the_cache_gives_the_same_tokens_as_without(full):
    """Goes beyond the window, with a padded chunk and single steps."""
    model = full.model()
    prompt = batch()["tokens"][0].tolist()
    ids = prompt + list(Generator(model, 64).generate(prompt, Sampling(temperature=0), max_new_tokens=6))
    logits_BTV = np.asarray(model(jnp.asarray([ids])))
    assert ids[len(prompt) :] == logits_BTV[0].argmax(axis=-1)[len(prompt) - 1 : -1].tolist()
    with torch.no_grad():
        tokens = {"tokens": np.asarray([ids], np.int32), "positions": np.arange(len(ids), dtype=np.int32)[None]}
        given = {**tokens, "segment_ids": np.zeros((1, len(ids)), np.int32)}
        plain, exact = (torch_logits(oracle, given).numpy() for oracle in (full.plain, full.exact))
    assert error_ratio(logits_BTV, plain, exact) <= 1


def test_files(full, tmp_path):
    """Sinks are read and written, are not quantized, and have llama.cpp's name."""
    config, params, _ = weights.load_model_files(full.directory, "float32")
    larger = dataclasses.replace(config, hidden_size=64, head_dim=16, intermediate_size=128)
    attention = abstract_params(larger, None, "nf4")["layers"]["self_attn"]
    assert attention["sinks"].shape == params["layers"]["self_attn"]["sinks"].shape == (2, 8)
    assert not nf4.is_quantized(attention["sinks"])
    assert nf4.is_quantized(attention["q_proj"]["weight"])
    weights.save_checkpoint(tmp_path / "model", params, config)
    written, read = (
        safetensors.numpy.load_file(folder / "model.safetensors") for folder in (tmp_path / "model", full.directory)
    )
    assert written.keys() == read.keys()
    assert all(np.array_equal(written[name], read[name]) for name in read)
    assert "model.layers.1.self_attn.sinks" in written
    names = {name.name: gguf_names(name, config)[0] for name in tensor_names(config)}
    assert names["model.layers.1.self_attn.sinks"] == "blk.1.attn_sinks.weight"


def test_attention_without_sinks_is_refused_before_weights_are_read(full):
    config = weights.load_config(full.directory)
    with pytest.raises(InputError, match="attention='cudnn' does not support sinks; use attention='pallas'"):
        resolve(ExecutionRequest(attention="cudnn"), dataclasses.replace(config, head_dim=64), jnp.bfloat16, "gpu")


def test_what_a_config_does_not_say_is_gpt_oss_s_default(full):
    stored = json.loads((full.directory / "config.json").read_text())
    bare = {
        key: value for key, value in stored.items() if key not in ("rope_parameters", "rope_scaling", "layer_types")
    }
    config = LlamaConfig.from_dict(bare)
    assert config == dataclasses.replace(weights.load_config(full.directory), own_values=config.own_values)
    assert [config.views[view].window for view in config.view_of_layer] == [7, None]
    assert not config.rope_scaling.truncate
