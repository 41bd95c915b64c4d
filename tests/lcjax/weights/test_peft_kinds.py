"""PEFT adapters on some layers, models without a head, or embeddings: supported or refused."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lcjax
from lcjax import weights
from lcjax.config import LlamaConfig
from lcjax.errors import InputError
from lcjax.model import Llama, ModelSettings
from lcjax.weights.peft import CONFIG_FILE, WEIGHTS_FILE

IDS = np.random.default_rng(0).integers(0, 101, (2, 12))


@pytest.fixture(scope="module")
def base(tiny_llama, tmp_path_factory):
    """A random model of three layers, in a directory."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("base") / "model"
    tiny_llama(initializer_range=0.15).save_pretrained(directory)
    return directory


def save_random_adapter(
    base, directory, *, kind: Any = transformers.AutoModelForCausalLM, saving=None, **options
) -> Any:
    """Returns a PEFT model with random factors, which is also saved."""
    model: Any = peft.get_peft_model(kind.from_pretrained(base), peft.LoraConfig(r=4, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(str(directory), **(saving or {}))
    return model.eval()


def adapted(base, directory) -> Llama:
    config, params, _ = weights.load_model_files(base, "float32")
    return lcjax.load_adapter(Llama(config, params, ModelSettings(max_seq_length=64)), directory)


def refusal(base, directory) -> str:
    with pytest.raises(InputError) as caught:
        weights.load_adapter(directory, weights.load_config(base))
    assert "\n" not in str(caught.value)
    return str(caught.value)


SOME = {
    "one layer": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "the first, as a number": {"target_modules": ["v_proj"], "layers_to_transform": 0},
    "two layers": {
        "target_modules": ["q_proj", "down_proj"],
        "layers_to_transform": [0, 2],
        "layers_pattern": "layers",
    },
    "paths": {"target_modules": ["model.layers.2.mlp.up_proj", "0.self_attn.q_proj"]},
    "a pattern": {"target_modules": r"model\.layers\.(0|2)\.self_attn\.[qk]_proj"},
    "all but": {"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["model.layers.1.self_attn.q_proj"]},
    "idle patterns": {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 8}},
}


@pytest.mark.parametrize("name", SOME)
def test_an_adapter_of_some_layers_means_the_same_as_to_peft(base, tmp_path, name):
    theirs = save_random_adapter(base, tmp_path / "a", task_type="CAUSAL_LM", **SOME[name])
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
    model = adapted(base, tmp_path / "a")
    np.testing.assert_allclose(model(jax.numpy.asarray(IDS)), expected, atol=2e-5, rtol=1e-4)
    lcjax.save_pretrained(model, tmp_path / "b")
    again = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "b"))
    with torch.no_grad():
        np.testing.assert_array_equal(again.eval()(torch.tensor(IDS)).logits.numpy(), expected)


def test_layers_that_are_left_out_are_exactly_the_base_s(base, tmp_path):
    save_random_adapter(base, tmp_path / "a", task_type="CAUSAL_LM", target_modules=["q_proj"], layers_to_transform=[1])
    lcjax.save_merged(adapted(base, tmp_path / "a"), tmp_path / "merged")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.layers.1.self_attn.q_proj.weight"}


def test_an_adapter_of_a_model_without_a_head_means_the_same(base, tmp_path):
    options = {"target_modules": ["q_proj", "down_proj"]}
    theirs = save_random_adapter(base, tmp_path / "a", kind=transformers.AutoModel, **options)
    assert all(".model.model." not in name for name in load_file(tmp_path / "a" / WEIGHTS_FILE))
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).last_hidden_state.numpy()
    found = adapted(base, tmp_path / "a").hidden_states(jax.numpy.asarray(IDS))
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "saving", "named"),
    [
        ({"target_modules": ["q_proj", "embed_tokens"]}, {"save_embedding_layers": False}, "adapts embed_tokens (base"),
        (
            {"target_modules": ["q_proj", "lm_head"]},
            {"save_embedding_layers": False},
            "adapts lm_head (base_model.model.lm_",
        ),
        ({"target_modules": ["lm_head"]}, {"save_embedding_layers": False}, "adapts lm_head (base_model.model.lm_"),
        (
            {"target_modules": ["q_proj"]},
            {"save_embedding_layers": True},
            "which PEFT saves with save_embedding_layers or modules_to_save",
        ),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, {}, "modules_to_save=['lm_head']"),
        (
            {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2}},
            {},
            "only one ratio of lora_alpha to r is supported",
        ),
        ({"target_modules": ["q_proj"], "use_dora": True}, {}, "use_dora=True"),
    ],
)
def test_more_than_lora_of_the_layers_is_refused_with_the_reason(base, tmp_path, options, saving, named):
    save_random_adapter(base, tmp_path, saving=saving, task_type="CAUSAL_LM", **options)
    message = refusal(base, tmp_path)
    assert named in message
    assert "merge it into its base with PEFT" in message
    assert "base model it was trained on" not in message


def test_a_layer_in_the_config_but_not_in_the_file_is_missing(base, tmp_path):
    save_random_adapter(base, tmp_path, task_type="CAUSAL_LM", target_modules=["q_proj"], layers_to_transform=[0, 2])
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    tensors = {name: tensor for name, tensor in tensors.items() if ".layers.2." not in name}
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    message = refusal(base, tmp_path)
    assert "2 missing (base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight" in message
    assert f"base model it was trained on ({base})" in message


def test_half_of_a_pair_is_missing_with_a_pattern_too(base, tmp_path):
    save_random_adapter(base, tmp_path, task_type="CAUSAL_LM", target_modules=r".*q_proj")
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    del tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    assert "1 missing (base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight)" in refusal(base, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"layers_to_transform": "first"},
        {"layers_to_transform": [99]},
        {"layers_to_transform": {}},
        {"target_modules": [3, None]},
        {"target_modules": 7},
        {"exclude_modules": "("},
        {"layers_pattern": "(("},
        {"r": True},
        {"lora_alpha": "inf"},
        {"lora_alpha": 1e999},
    ],
)
def test_invalid_values_in_the_config_give_one_line_or_are_harmless(base, tmp_path, change):
    save_random_adapter(base, tmp_path, task_type="CAUSAL_LM", target_modules=["q_proj"])
    parsed = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(parsed | change))
    config: LlamaConfig = weights.load_config(base)
    harmless = {"target_modules": 7}, {"exclude_modules": "("}, {"layers_pattern": "(("}, {"layers_to_transform": {}}
    if change in (*harmless, {"layers_to_transform": "first"}):
        assert weights.load_adapter(tmp_path, config)[0].target_modules == ("q_proj",)
    else:
        refusal(base, tmp_path)
