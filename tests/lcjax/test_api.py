"""The public API: saving and loading models and adapters, also by transformers and PEFT."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from rich.console import Console

import lcjax
from lcjax.config import TARGET_MODULES
from lcjax.model import lora
from lcjax.weights import load_tokenizer
from tests.support.numerics import error_ratio
from tests.support.oracles import Oracle, make_batch, make_oracle, to_numpy, torch_logits, with_random_adapter
from tests.support.shapes import MODELS

VOCABULARY = 320


@pytest.fixture(scope="module")
def base(tmp_path_factory, model_dir) -> Oracle:
    """A tiny random model with a small tokenizer."""
    fields = {**MODELS["untied gqa 3, odd head_dim"], "vocab_size": VOCABULARY, "num_hidden_layers": 2}
    oracle = make_oracle(tmp_path_factory.mktemp("model"), adapter=False, **fields)
    load_tokenizer(model_dir).save_pretrained(oracle.directory)
    return oracle


@pytest.fixture(scope="module")
def pretrained(base):
    return lcjax.from_pretrained(base.directory, max_seq_length=64, dtype="float32")


@pytest.fixture(scope="module")
def batch():
    return make_batch(VOCABULARY, 2, 33)


@pytest.fixture(scope="module")
def trained(pretrained, tmp_path_factory):
    """A model whose adapter was trained for a few steps by the public `train`."""
    directory = tmp_path_factory.mktemp("run")
    (directory / "text.txt").write_text("The quick brown fox jumps over the lazy dog, again and again. " * 40)
    model, tokenizer = pretrained
    model = lcjax.get_peft_model(model, r=4, lora_alpha=16, random_state=3)
    result = lcjax.train(
        model,
        tokenizer,
        [directory / "text.txt"],
        output_dir=directory / "run",
        max_steps=4,
        learning_rate=1e-2,
        eval_fraction=0.0,
        console=Console(quiet=True),
    )
    assert result.steps == 4
    return result.model, directory / "run" / "adapter"


@jax.jit
def call(model, *inputs):
    return model(*inputs)


def logits(model, batch):
    return call(model, batch["tokens"], batch["positions"], batch["segment_ids"])


def ratio(actual, oracle: Oracle, batch) -> float:
    """Returns the error ratio relative to the oracle's model and adapter."""
    with torch.no_grad():
        return error_ratio(actual, *(to_numpy(torch_logits(m, batch)) for m in (oracle.plain, oracle.exact)))


def test_a_trained_adapter_means_the_same_to_peft(base, pretrained, trained, batch, tmp_path):
    model, adapter_of_run = trained
    lcjax.save_pretrained(model, tmp_path)
    for directory in (tmp_path, adapter_of_run):
        assert ratio(logits(model, batch), dataclasses.replace(base, adapter=directory), batch) <= 1
    changed = np.abs(logits(model, batch) - logits(pretrained[0], batch)).max()
    assert changed > 0.1
    assert ratio(logits(pretrained[0], batch), dataclasses.replace(base, adapter=tmp_path), batch) > 1


def test_adapters_survive_save_and_load_bitwise(pretrained, trained, batch, tmp_path):
    model, _ = trained
    lcjax.save_pretrained(model, tmp_path)
    loaded = lcjax.load_adapter(pretrained[0], tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
    assert loaded.settings.lora == model.settings.lora
    np.testing.assert_array_equal(logits(loaded, batch), logits(model, batch))


VARIANTS = {
    "all modules": {},
    "rslora": {"use_rslora": True},
    "subset": {"target_modules": ["q_proj", "v_proj"]},
    "one module": {"target_modules": ["down_proj"], "r": 1},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_an_adapter_of_peft_means_the_same_here(base, pretrained, batch, tmp_path, name):
    oracle = with_random_adapter(base, tmp_path, **VARIANTS[name])
    model = lcjax.load_adapter(pretrained[0], tmp_path)
    assert model.settings.lora.target_modules == tuple(VARIANTS[name].get("target_modules", TARGET_MODULES))
    assert ratio(logits(model, batch), oracle, batch) <= 1
    assert ratio(logits(pretrained[0], batch), oracle, batch) > 1


def test_ignoring_rslora_fails(base, pretrained, batch, tmp_path):
    oracle = with_random_adapter(base, tmp_path / "adapter", use_rslora=True)
    # Computes the references before the file changes.
    ratio(logits(pretrained[0], batch), oracle, batch)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": False}))
    assert ratio(logits(lcjax.load_adapter(pretrained[0], tmp_path / "adapter"), batch), oracle, batch) > 1


def test_merged_weights_mean_the_same_to_transformers(pretrained, trained, batch, tmp_path):
    model, _ = trained
    lcjax.save_merged(model, tmp_path, pretrained[1])
    merged = Oracle(tmp_path)
    assert isinstance(merged.plain, transformers.LlamaForCausalLM)
    assert ratio(logits(model, batch), merged, batch) <= 1
    assert ratio(logits(pretrained[0], batch), merged, batch) > 1
    again, tokenizer = lcjax.from_pretrained(tmp_path, dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, again.params, lora.merge(model.params, model.settings.lora.scaling))
    assert tokenizer("a b c") == pretrained[1]("a b c")


def test_saving_a_base_model_is_a_bitwise_copy(base, pretrained, tmp_path):
    lcjax.save_merged(pretrained[0], tmp_path)
    state, saved = (
        transformers.AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32).state_dict()
        for d in (base.directory, tmp_path)
    )
    assert state.keys() == saved.keys()
    for name in state:
        assert torch.equal(state[name], saved[name]), name


def test_a_fresh_adapter_changes_no_logit(pretrained, batch):
    model, _ = pretrained
    adapted = lcjax.get_peft_model(model)
    np.testing.assert_array_equal(logits(adapted, batch), logits(model, batch))
    assert adapted.embed_tokens.weight[...] is model.embed_tokens.weight[...]
    assert model.settings.lora is None
    first, other = (lcjax.get_peft_model(model, random_state=seed).params for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, adapted.params, first)
    a, b = (params["layers"]["mlp"]["up_proj"]["lora_A"] for params in (first, other))
    assert (a != b).all()


def test_get_peft_model_accepts_the_arguments_of_peft(pretrained):
    model = lcjax.get_peft_model(
        pretrained[0],
        r=8,
        lora_alpha=32,
        target_modules=["v_proj", "q_proj"],
        use_rslora=True,
        lora_dropout=0.1,
        use_gradient_checkpointing="unsloth",
    )
    assert model.settings.lora == lcjax.LoraConfig(8, 32, ("q_proj", "v_proj"), True, 0.1)
    assert model.settings.lora.scaling == 32 / np.sqrt(8)
    assert model.settings.requested.use_gradient_checkpointing == "unsloth"
    everything = lcjax.get_peft_model(pretrained[0], target_modules="all-linear")
    assert everything.settings.lora.target_modules == TARGET_MODULES
    count = sum(leaf.size for leaf in jax.tree.leaves(lora.detach(everything.params)[1]))
    hf = transformers.AutoModelForCausalLM.from_pretrained(pretrained[0].settings.name_or_path)
    hf = peft.get_peft_model(hf, peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert count == hf.get_nb_trainable_parameters()[0]


def test_bfloat16_weights_are_those_of_torch(base):
    model, _ = lcjax.from_pretrained(base.directory, dtype="bfloat16")
    expected = transformers.AutoModelForCausalLM.from_pretrained(base.directory, dtype=torch.bfloat16)
    np.testing.assert_array_equal(model.head_VD, to_numpy(expected.lm_head.weight))
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("bfloat16")}
    assert call(model, np.zeros((1, 3), np.int32)).dtype == jnp.float32


def test_the_model_s_own_context_is_the_default_and_more_scales_rope(base, caplog):
    with caplog.at_level("WARNING", logger="lcjax"):
        model, _ = lcjax.from_pretrained(base.directory, use_gradient_checkpointing="offload")
        assert model.settings.max_seq_length == 65_536
        assert not caplog.records
        model, _ = lcjax.from_pretrained(base.directory, max_seq_length=131_072, use_gradient_checkpointing="offload")
    assert model.config.rope_scaling.rope_type == "yarn"
    [line] = caplog.messages
    assert line.startswith("max_seq_length=131,072 with a model trained for 65,536 tokens; RoPE is now yarn, factor 2,")


def test_an_adapter_that_leaves_rope_unchanged_is_loaded_without_a_line_about_it(base, trained, caplog):
    model, _ = lcjax.from_pretrained(base.directory, max_seq_length=131_072, use_gradient_checkpointing="offload")
    with caplog.at_level("WARNING", logger="lcjax"):
        caplog.clear()
        loaded = lcjax.load_adapter(model, trained[1])
    assert not caplog.messages
    assert loaded.config == model.config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype='float16' is not supported; use float32 or bfloat16"),
        ({"attention": "flash"}, "attention='flash' is unknown"),
        ({"max_seq_length": 0}, "max_seq_length=0 must be a positive"),
        ({"rope_scaling": "yarm"}, "rope_scaling='yarm' is unknown; did you mean yarn"),
        ({"rope_scaling": "yarn"}, "stretches positions beyond 65,536 tokens, but max_seq_length=65,536 is not longer"),
        ({"rope_theta": 1.0}, "rope_theta=1.0 is out of range"),
        ({"rope_scaling": "none", "rope_theta": 1e6}, "rope_scaling='none' and rope_theta=1000000.0 contradict"),
        ({"use_gradient_checkpointing": "some"}, "use_gradient_checkpointing='some' is unknown"),
        ({"max_seq_length": 40_000, "use_gradient_checkpointing": "full"}, "at 40,000 tokens"),
    ],
)
def test_bad_options_of_from_pretrained_are_refused(base, options, message):
    with pytest.raises(lcjax.InputError, match=message):
        lcjax.from_pretrained(base.directory, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r=0 must be a positive integer"),
        ({"lora_alpha": -1}, "lora_alpha=-1 must be positive"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0 must be at least 0 and below 1"),
        ({"target_modules": ["q_proj", "lm_head"]}, "cannot be adapted, only the linear maps"),
        ({"target_modules": []}, "empty target_modules"),
        ({"use_gradient_checkpointing": "some"}, "use_gradient_checkpointing='some' is unknown"),
    ],
)
def test_bad_options_of_get_peft_model_are_refused(pretrained, options, message):
    with pytest.raises(lcjax.InputError, match=message):
        lcjax.get_peft_model(pretrained[0], **options)


def test_adapters_do_not_stack(pretrained, trained, tmp_path):
    adapted, directory = trained
    with pytest.raises(lcjax.InputError, match="already has an adapter"):
        lcjax.get_peft_model(adapted)
    with pytest.raises(lcjax.InputError, match="already has an adapter"):
        lcjax.load_adapter(adapted, directory)
    with pytest.raises(lcjax.InputError, match="no adapter to save; use save_merged"):
        lcjax.save_pretrained(pretrained[0], tmp_path / "adapter")
    assert not Path(tmp_path / "adapter").exists()
