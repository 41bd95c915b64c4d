"""A run beyond the trained context saves its choice of RoPE, and a resumed run uses it."""

from __future__ import annotations

import json

import lcjax
from lcjax.config import RopeScaling
from lcjax.train.__main__ import main


def test_a_resumed_run_uses_the_same_rope(model_dir, data_dir, tmp_path, capsys):
    flags = (
        "--max-seq-length 256 --rope-scaling linear --rope-theta 20000 --max-steps 2 --save-steps 1 --eval-fraction 0"
    )
    data = ["--model", str(model_dir), "--data", str(data_dir), *flags.split(), "--lora-r", "2"]
    assert main([*data, "--output-dir", str(tmp_path / "run")]) == 0
    line = "RoPE is now linear, factor 2, base 20,000: all frequencies are scaled equally (as requested)"
    printed = capsys.readouterr().err
    assert line in printed
    assert "held-out loss" not in printed  # nothing is held out
    resumed = ["--resume-from-checkpoint", str(tmp_path / "run" / "checkpoints" / "1")]
    assert main([*resumed, "--output-dir", str(tmp_path / "resumed")]) == 0
    assert line in capsys.readouterr().err
    for name in ("adapter/adapter_model.safetensors", "adapter/base_config.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    config = lcjax.LlamaConfig.from_json(tmp_path / "run" / "adapter" / "base_config.json")
    assert (config.rope_theta, config.max_position_embeddings) == (20_000.0, 256)
    assert config.rope_scaling == RopeScaling("linear", 2.0)
    assert main([*resumed, "--output-dir", str(tmp_path / "other"), "--rope-scaling", "yarn"]) == 2
    assert "--rope-scaling was 'linear' and is 'yarn'; give the same" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["r"] == 2
