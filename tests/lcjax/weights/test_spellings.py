"""Different spellings that transformers accepts for a model give the same logits here."""

from __future__ import annotations

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file, save_model

from lcjax import weights
from lcjax.errors import InputError
from lcjax.model import Llama, ModelSettings

IDS = np.random.default_rng(0).integers(0, 101, (2, 12))


def logits(directory):
    config, params, _ = weights.load_model_files(directory, "float32")
    return Llama(config, params, ModelSettings(max_seq_length=64))(jnp.asarray(IDS))


def assert_same_model(directory):
    loaded: Any = transformers.LlamaForCausalLM.from_pretrained(directory, output_loading_info=True)
    theirs, report = loaded
    assert not report["missing_keys"]
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(logits(directory), expected, atol=1e-5, rtol=1e-4)


@pytest.fixture
def tied(tiny_llama, tmp_path):
    model = tiny_llama(tie_word_embeddings=True)
    model.config.save_pretrained(tmp_path)
    return model


def test_a_tied_checkpoint_of_the_head_alone(tied, tmp_path):
    save_model(tied, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    names = load_file(tmp_path / "model.safetensors").keys()
    assert ("lm_head.weight" in names) != ("model.embed_tokens.weight" in names)
    for head in (True, False):
        tensors = load_file(tmp_path / "model.safetensors")
        table = tensors.pop("lm_head.weight", None)
        table = tensors.pop("model.embed_tokens.weight") if table is None else table
        tensors["lm_head.weight" if head else "model.embed_tokens.weight"] = table
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert_same_model(tmp_path)


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_weights_without_the_prefix_of_a_tied_model(tied, tmp_path, shard):
    tied.model.save_pretrained(tmp_path, max_shard_size=shard)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaModel"]
    assert_same_model(tmp_path)


def test_weights_without_the_prefix_and_with_a_head(tiny_llama, tmp_path):
    model = tiny_llama()
    model.config.save_pretrained(tmp_path)
    tensors = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same_model(tmp_path)


def test_a_model_without_its_head_is_refused_by_name(tiny_llama, tmp_path):
    """transformers would initialize the head randomly."""
    tiny_llama().model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"1 missing \(lm_head.weight\)"):
        logits(tmp_path)


def test_half_of_the_names_with_a_prefix_are_refused(tiny_llama, tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["norm.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 unknown \(norm.weight\); 1 missing \(model.norm.weight\)"):
        logits(tmp_path)


BUFFER = "model.layers.0.self_attn.rotary_emb.inv_freq"


@pytest.fixture
def sharded(tiny_llama, tmp_path):
    """A directory of shards, and a function that adds a tensor to the first shard or the index."""
    tiny_llama().save_pretrained(tmp_path, max_shard_size="20KB")

    def add(name, *, in_file, in_index):
        index = tmp_path / "model.safetensors.index.json"
        parsed = json.loads(index.read_text())
        first = sorted(set(parsed["weight_map"].values()))[0]
        if in_index:
            parsed["weight_map"][name] = first
            index.write_text(json.dumps(parsed))
        if in_file:
            tensors = load_file(tmp_path / first) | {name: torch.ones(4)}
            save_file(tensors, tmp_path / first, metadata={"format": "pt"})
        return tmp_path

    return add


@pytest.mark.parametrize("name", [BUFFER, "model.rotary_emb.inv_freq"])
@pytest.mark.parametrize("in_index", [True, False])
def test_rotary_buffers_in_shards_are_listed_or_not(sharded, name, in_index):
    assert_same_model(sharded(name, in_file=True, in_index=in_index))


def test_rotary_buffers_that_only_the_index_lists_are_not_required(sharded):
    assert logits(sharded(BUFFER, in_file=False, in_index=True)).shape == (2, 12, 101)


@pytest.mark.parametrize("name", ["model.rotary_emb.inv_freq_too", "model.layers.0.self_attn.bias", "extra"])
def test_any_other_tensor_that_is_not_listed_is_refused_by_name(sharded, name):
    with pytest.raises(InputError, match=f"does not list {name}"):
        logits(sharded(name, in_file=True, in_index=False))
