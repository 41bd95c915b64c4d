"""The study of RoPE beyond the trained context, on a tiny model, and its table."""

from __future__ import annotations

import json

import pytest

import rope_study
from lcjax.weights import load_tokenizer
from lcjax_scripts.studies.rope.report import mean_loss, table
from tests.support.oracles import make_oracle
from tests.support.shapes import MODELS


@pytest.fixture(scope="module")
def given(tmp_path_factory, smollm2) -> list[str]:
    """The flags of a study of a random model with a trained context of 64 tokens."""
    folder = tmp_path_factory.mktemp("study")
    fields = {**MODELS["tied gqa 1"], "vocab_size": 49_152, "num_hidden_layers": 1, "max_position_embeddings": 64}
    oracle = make_oracle(folder, adapter=False, **fields)
    load_tokenizer(smollm2).save_pretrained(oracle.directory)
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog, again and again. " * 60)
    return ["--model", str(oracle.directory), "--data", str(folder / "text.txt"), "--factors", "2", "--lora-r", "2"]


def test_a_small_study(given, tmp_path, capsys):
    flags = [*given, "--eval-tokens", "256", "--output-dir", str(tmp_path)]
    assert rope_study.main([*flags, "--kinds", "yarn", "--steps", "2"]) == 0
    assert rope_study.main([*flags, "--kinds", "none", "--steps", "0"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    yarn, none = results["cells"]
    assert (yarn["rope"], none["rope"]) == (
        "yarn, factor 2, base 10,000, attention factor 1.069",
        "default, base 10,000",
    )
    for cell in results["cells"]:
        assert [(b["start"], b["stop"], b["tokens"]) for b in cell["before"]] == [
            (0, 16, 32), (16, 32, 32), (32, 64, 64), (64, 128, 128)
        ]  # fmt: skip
    assert len(yarn["training_losses"]) == 2
    assert mean_loss(yarn["after"], 0, 128) < mean_loss(yarn["before"], 0, 128)
    assert "after" not in none
    assert mean_loss(yarn["before"], 64, 128) != mean_loss(none["before"], 64, 128)
    written = (tmp_path / "table.md").read_text()
    assert written == table(results)
    assert written.splitlines()[0] == "| length | RoPE | 0 to 64 | 64 to 128 |"
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "2 x none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--kinds spline", "--kinds spline is unknown; use some of auto, none"),
        ("--factors 1", "--factors 1 must each be at least 2"),
        ("--trained-context 100", "--trained-context 100 must be a power of two"),
        ("--eval-tokens 100", "--eval-tokens 100 is less than one window of 128 tokens"),
        ("--eval-tokens 128 --steps 9999", "the text has 841 tokens and 1,280,001 are needed"),
    ],
)
def test_bad_input_is_one_line(given, tmp_path, capsys, flags, message):
    assert rope_study.main([*given, *flags.split(), "--output-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith(f"error: {message}")
