"""scripts/bench_experts.py: every linear map of a model's experts, and all passes."""

from __future__ import annotations

import dataclasses
import json

from bench_experts import main
from lcjax.config.presets import PRESETS
from lcjax_scripts.pages.measured_tables import rows_of


def test_all_maps_and_passes_are_measured(tmp_path, capsys):
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64}
    own = (*PRESETS["qwen3-30b-a3b"].own_values, ("moe_intermediate_size", 16), ("num_experts", 8))
    config = dataclasses.replace(PRESETS["qwen3-30b-a3b"], **sizes, own_values=own)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    arguments = ["--model", str(tmp_path / "config.json"), "--tokens", "64", "--seconds", "0.01"]
    assert main([*arguments, "--csv", str(tmp_path / "experts.csv")]) == 0
    rows = rows_of(tmp_path / "experts.csv")
    maps, passes = ("gate_proj", "up_proj", "down_proj"), ("forward", "inputs", "weights")
    assert [(row["map"], row["pass"]) for row in rows] == [(name, part) for name in maps for part in passes]
    assert all(float(row[name]) > 0 for row in rows for name in ("milliseconds", "dense", "ragged_dot"))
    assert capsys.readouterr().out.count("of dense") == len(rows)


def test_a_dense_model_is_refused(capsys):
    assert main(["--model", "smollm2-135m"]) == 2
    assert "has no experts; choose one that has, such as gpt-oss-20b" in capsys.readouterr().err
