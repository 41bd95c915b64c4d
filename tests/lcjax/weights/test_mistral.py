"""Mistral's defaults: sequences longer than its window are refused."""

from __future__ import annotations

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import lcjax
from lcjax.convert.__main__ import main as convert
from lcjax.errors import InputError
from lcjax.generate import Generator

WINDOW = 24
SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 8, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def mistral(tmp_path_factory, model_dir):
    """A random Mistral with a window, and its directory. config.json has no number of KV heads."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("mistral") / "m"
    fields: dict[str, Any] = {**SIZES, "sliding_window": WINDOW, "initializer_range": 0.2, "bos_token_id": None}
    config = transformers.MistralConfig(**fields)
    model = transformers.MistralForCausalLM(config).eval()
    model.save_pretrained(directory)
    written = json.loads((directory / "config.json").read_text())
    del written["num_key_value_heads"]
    (directory / "config.json").write_text(json.dumps(written))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((model_dir / name).read_bytes())
    return model, directory


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


def test_logits_within_the_window_are_those_of_transformers(mistral):
    model, directory = mistral
    ids = np.random.default_rng(0).integers(0, 320, (2, WINDOW))
    ours = lcjax.from_pretrained(directory, WINDOW, "float32")[0]
    np.testing.assert_allclose(ours(jnp.asarray(ids)), logits_of(model, ids), atol=1e-5, rtol=1e-5)


def test_one_token_more_than_the_window_is_refused(mistral):
    model, directory = mistral
    full = transformers.MistralForCausalLM.from_pretrained(directory, sliding_window=None).eval()
    ids = np.random.default_rng(0).integers(0, 320, (1, WINDOW + 1))
    assert np.abs(logits_of(model, ids)[:, -1] - logits_of(full, ids)[:, -1]).max() > 1e-3
    with pytest.raises(InputError, match=r"128 tokens exceed sliding_window=24 .* of at most 24"):
        lcjax.from_pretrained(directory)
    ours = lcjax.from_pretrained(directory, WINDOW, "float32")[0]
    with pytest.raises(InputError, match="25 tokens exceed sliding_window=24"):
        ours(jnp.asarray(ids))
    with pytest.raises(InputError, match="25 tokens exceed sliding_window=24"):
        Generator(ours, WINDOW + 1)


def test_training_beyond_the_window_is_refused_in_one_line(mistral, data_dir, tmp_path, capsys):
    from lcjax.train.__main__ import main

    flags = ["--model", mistral[1], "--data", data_dir, "--output-dir", tmp_path / "run", "--max-seq-length", 64]
    assert main([str(flag) for flag in flags]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: 64 tokens exceed sliding_window=24")


def test_a_converted_model_has_its_window(mistral, tmp_path):
    model, directory = mistral
    assert convert([str(directory), str(tmp_path / "out")]) == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert (again.config.model_type, again.config.sliding_window) == ("mistral", WINDOW)
    ids = np.random.default_rng(1).integers(0, 320, (1, 2 * WINDOW))
    np.testing.assert_array_equal(logits_of(again, ids), logits_of(model, ids))
