"""`lcjax train --quantize nf4`: recorded, resumed exactly, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lcjax
from lcjax.errors import InputError
from lcjax.train.__main__ import main
from lcjax.train.arguments import RunArguments
from lcjax.weights import load_tokenizer
from tests.support.oracles import make_oracle

FIELDS = {
    "vocab_size": 49_152,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, smollm2) -> Path:
    """A tiny random model with SmolLM2's tokenizer."""
    directory = make_oracle(tmp_path_factory.mktemp("model"), adapter=False, **FIELDS).directory
    load_tokenizer(smollm2).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, again and again. " * 60)
    return path


@pytest.fixture(scope="module")
def finished(model_dir, text, tmp_path_factory) -> Path:
    """The folder of a run of four steps that saved after every second one."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    flags = "--quantize nf4 --max-seq-length 32 --max-steps 4 --save-steps 2 --eval-fraction 0 --lora-r 2 --output-dir"
    assert main(["--model", str(model_dir), "--data", str(text), *flags.split(), str(folder)]) == 0
    return folder


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_resumes_exactly(finished, tmp_path):
    checkpoint = finished / "checkpoints" / "2"
    assert main(["--resume-from-checkpoint", str(checkpoint), "--output-dir", str(tmp_path / "on")]) == 0
    assert losses(tmp_path / "on")[-2:] == losses(finished)[-2:]
    adapters = [(folder / "adapter/adapter_model.safetensors").read_bytes() for folder in (finished, tmp_path / "on")]
    assert adapters[0] == adapters[1]


def test_a_run_resumes_with_the_same_choice_only(finished, tmp_path, capsys):
    checkpoint = finished / "checkpoints" / "2"
    flags = ["--resume-from-checkpoint", str(checkpoint), "--output-dir", str(tmp_path), "--quantize", "None"]
    assert main(flags) == 2
    assert "--quantize was 'nf4' and is None; give the same" in capsys.readouterr().err


def test_contradictions_and_unknown_kinds_are_refused():
    with pytest.raises(InputError, match="--full-finetuning and --quantize nf4 contradict each other"):
        RunArguments(full_finetuning=True, quantize="nf4")
    with pytest.raises(InputError, match="quantize='fp4' is not supported; use nf4"):
        RunArguments(quantize="fp4")


def test_quantized_weights_are_not_trained(model_dir, text, tmp_path):
    model, tokenizer = lcjax.from_pretrained(model_dir, 32, quantize="nf4")
    with pytest.raises(InputError, match="is quantized and cannot be trained itself; put an adapter on the model"):
        lcjax.train(model, tokenizer, [text], output_dir=tmp_path / "run", max_steps=1, eval_fraction=0.0)
    assert not (tmp_path / "run").exists()


def test_an_unknown_kind_is_refused_before_anything_is_read():
    with pytest.raises(InputError, match="quantize='int3' is not supported"):
        lcjax.from_pretrained("no/such/model", quantize="int3")
