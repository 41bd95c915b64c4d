"""scripts/long_context_gain.py on the tiny model: both runs see the same tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lcjax_scripts.studies import long_context_gain
from lcjax_scripts.studies.long_context_gain import Experiment
from long_context_gain import main


@pytest.fixture(scope="module")
def data(texts, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("long")
    for number in range(20):
        (folder / f"{number:02}.txt").write_text(" ".join(texts[number : number + 4]))
    return sorted(folder.iterdir())


def test_the_experiment(model_dir, data, tmp_path, capsys, monkeypatch):
    batches = {}
    original = long_context_gain.batches

    def recorded(corpus, experiment: Experiment, tokens: int):
        batches[tokens] = list(original(corpus, experiment, tokens))
        return iter(batches[tokens])

    monkeypatch.setattr(long_context_gain, "batches", recorded)
    flags = ["--context", "128", "--window", "32", "--steps", "3", "--documents", "2", "--output-dir", str(tmp_path)]
    assert main(["--model", str(model_dir), "--data", *map(str, data), *flags]) == 0
    out = capsys.readouterr().out
    assert "| 32 and beyond |" in out
    assert "whole sequences gain" in out
    found = json.loads((tmp_path / "long-context-gain.json").read_text())
    before, whole, cut = found["before"], found["128 at a time"], found["32 at a time"]
    assert len(before) == len(whole) == len(cut) == 2
    assert before[0].keys() == {"0", "16", "32", "64"}
    assert before != whole != cut
    assert (tmp_path / "long-context-gain.png").read_bytes().startswith(b"\x89PNG")
    for long, short in zip(batches[128], batches[32], strict=True):
        assert {name: array.shape for name, array in short.items()} == dict.fromkeys(short, (1, 4, 32))
        for name in ("tokens", "labels"):
            np.testing.assert_array_equal(long[name].ravel(), short[name].ravel())
        np.testing.assert_array_equal(long["positions"][0, 0], np.arange(128))
        np.testing.assert_array_equal(short["positions"][0], np.tile(np.arange(32), (4, 1)))
    assert len({batch["tokens"].tobytes() for batch in batches[128]}) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--window", "100"), "--window 100 does not divide --context 2048"),
        (("--steps", "1"), "--steps 1 is out of range"),
        (("--context", "64", "--window", "32", "--steps", "999"), "sequences of 64 tokens for --steps 999; lower it"),
    ],
)
def test_bad_input_is_one_line(model_dir, data, capsys, flags, message):
    assert main(["--model", str(model_dir), "--data", *map(str, data), *flags]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
