"""A model at 8 times its trained context: saved and loaded here and in transformers.

It is saved as a complete model and as an adapter.
"""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

import lcjax
import long_context_tool
from lcjax.config import LlamaConfig
from lcjax.convert.__main__ import main as convert
from lcjax.ops.rope import inverse_frequencies
from lcjax.weights import load_tokenizer
from tests.support.compiling import QUICKEST_TO_COMPILE
from tests.support.numerics import error_ratio
from tests.support.oracles import Oracle, make_batch, make_oracle, to_numpy, torch_logits
from tests.support.rope_kinds import transformers_frequencies, with_exact_angles
from tests.support.shapes import MODELS
from tests.support.thin import thinned

CONTEXT = 512
LENGTH = 8 * CONTEXT


@pytest.fixture(scope="module")
def base(tmp_path_factory, smollm2) -> Oracle:
    """A random model with a trained context of 512 tokens, and a tokenizer."""
    fields = {**MODELS["untied gqa 3, odd head_dim"], "num_hidden_layers": 1, "max_position_embeddings": CONTEXT}
    oracle = make_oracle(tmp_path_factory.mktemp("model"), adapter=False, **fields)
    load_tokenizer(smollm2).save_pretrained(oracle.directory)
    return oracle


def load(directory, length: int | None = LENGTH, **options):
    return lcjax.from_pretrained(directory, length, "float32", **options)


def batch():
    """Rows with the last positions of a sequence, and with random positions."""
    rows = [np.arange(LENGTH - 24, LENGTH), np.linspace(0, LENGTH - 2, 24, dtype=int)]
    return make_batch(131, 2, 24, positions=np.stack(rows))


@functools.partial(jax.jit, compiler_options=QUICKEST_TO_COMPILE)
def _call(model, *inputs):
    return model(*inputs)


def logits(model):
    inputs = batch()
    return _call(model, inputs["tokens"], inputs["positions"], inputs["segment_ids"])


def ratio(model, oracle: Oracle) -> float:
    exact = with_exact_angles(oracle.exact, LlamaConfig.from_json(oracle.directory / "config.json"))
    with torch.no_grad():
        return error_ratio(logits(model), *(to_numpy(torch_logits(m, batch())) for m in (oracle.original, exact)))


@pytest.mark.parametrize(
    "scaling",
    thinned(["auto", "none", "base", "linear", "dynamic", "llama3"], lambda scaling: scaling not in ("none", "linear")),
)
def test_what_is_saved_means_the_same_here_and_to_transformers(base, tmp_path, scaling):
    model, tokenizer = load(base.directory, rope_scaling=scaling)
    lcjax.save_merged(model, tmp_path, tokenizer)
    again, _ = load(tmp_path, length=None)
    assert again.config == model.config
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    for tokens in (1, LENGTH):
        frequencies, _ = transformers_frequencies(theirs, tokens)
        np.testing.assert_allclose(inverse_frequencies(model.config, tokens), frequencies, rtol=4e-7)
    if scaling in ("auto", "dynamic"):
        saved = Oracle(tmp_path)
        assert ratio(model, saved) <= 1
        assert ratio(load(base.directory, rope_scaling="none")[0], saved) > 1


def test_an_adapter_brings_its_rope(base, tmp_path, caplog):
    model, _ = load(base.directory)
    model = lcjax.get_peft_model(model, r=3)
    lora_B = model.layers.mlp.up_proj.lora_B
    assert lora_B is not None
    lora_B[...] = 0.05 * jax.random.normal(jax.random.key(1), lora_B.shape)
    lcjax.save_pretrained(model, tmp_path / "adapter")
    with caplog.at_level("WARNING", logger="lcjax"):
        fresh = lcjax.load_adapter(load(base.directory, length=None)[0], tmp_path / "adapter")
    assert caplog.messages[-1].endswith("yarn, factor 8, base 10,000, attention factor 1.208")
    assert fresh.config == model.config
    np.testing.assert_array_equal(logits(fresh), logits(model))
    caplog.clear()
    assert lcjax.load_adapter(load(base.directory)[0], tmp_path / "adapter").config == model.config
    assert len(caplog.messages) == 1  # about the choice, not the adapter
    further = lcjax.load_adapter(load(base.directory, 2 * LENGTH)[0], tmp_path / "adapter")
    assert further.config.rope_scaling == dataclasses.replace(model.config.rope_scaling, factor=16.0)

    def theirs(**options):
        model = transformers.AutoModelForCausalLM.from_pretrained(base.directory, dtype=torch.float32, **options)
        return peft.PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()

    recorded = transformers.AutoConfig.from_pretrained(tmp_path / "adapter" / "base_config.json")
    with torch.no_grad():
        plain, unscaled = (to_numpy(torch_logits(m, batch())) for m in (theirs(config=recorded), theirs()))
    exact = np.asarray(logits(model), np.float64)
    assert error_ratio(plain, exact.astype(np.float32), exact) > 0  # the two computations differ
    np.testing.assert_allclose(plain, logits(model), atol=1e-3 * np.abs(exact).max())
    assert np.abs(unscaled - plain).max() > 0.1 * np.abs(exact).max()
    assert convert([str(base.directory), str(tmp_path / "merged"), "--adapter", str(tmp_path / "adapter")]) == 0
    assert load(tmp_path / "merged", length=None)[0].config == model.config


def test_the_tool_saves_what_it_prints(base, tmp_path, capsys):
    flags = ["--model", str(base.directory), "--max-seq-length", str(LENGTH)]
    assert long_context_tool.main([*flags, "--output-dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert ["context,", "tokens", "512", "4,096"] in [line.split() for line in printed.splitlines()]
    assert f"{tmp_path / 'out'}: " in printed
    saved, chosen = load(tmp_path / "out", length=None)[0], load(base.directory)[0]
    assert saved.config == chosen.config
    jax.tree.map(np.testing.assert_array_equal, saved.params, chosen.params)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_scaling"]["rope_type"] == "yarn"
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("a b")["input_ids"]
    assert long_context_tool.main([*flags, "--rope-scaling", "linear", "--rope-theta", "20000"]) == 0
    assert "linear, factor 8, base 20,000" in capsys.readouterr().out


def test_no_choice_is_reported_before_it_is_refused(base, tmp_path, capsys):
    flags = ["--rope-scaling", "dynamic", "--max-seq-length", "1000"]
    assert convert([str(base.directory), str(tmp_path / "m.gguf"), *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "cannot express rope_type=dynamic; write a Hugging Face directory instead" in captured.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--max-seq-length 1000 --rope-scaling spline", "rope_scaling='spline' is unknown"),
        ("--max-seq-length 100 --rope-scaling yarn", "stretches positions beyond 512 tokens"),
        ("--max-seq-length 2147483648", "max_seq_length=2147483648 must be a positive number of tokens, at most"),
        ("--max-seq-length 1000 --rope-theta 0.5", "rope_theta=0.5 is out of range"),
        ("--max-seq-length 1000 --output-dir MODEL", "is not empty; give another directory or add --overwrite"),
        ("--max-seq-length 1000 --model nowhere/", "nowhere"),
    ],
)
def test_bad_input_of_the_tool_is_one_line(base, capsys, flags, message):
    given = ["--model", str(base.directory), *flags.replace("MODEL", str(base.directory)).split()]
    assert long_context_tool.main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
