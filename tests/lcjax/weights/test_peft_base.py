"""An adapter of another base model of the same shapes gets a warning; one of a copy does not."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import jax
import pytest

import lcjax
from lcjax import weights
from lcjax.convert.__main__ import main as convert
from lcjax.weights.peft import CONFIG_FILE, other_base


@pytest.fixture(scope="module")
def adapter(model_dir, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("adapter")
    model, _ = lcjax.from_pretrained(model_dir, dtype="float32")
    lcjax.save_pretrained(lcjax.get_peft_model(model, r=2), directory)
    return directory


def other_model(model_dir: Path, path: Path) -> Path:
    shutil.copytree(model_dir, path)
    config, params, _ = weights.load_model_files(model_dir, "float32")
    weights.save_checkpoint(path, jax.tree.map(lambda leaf: leaf + 0.1, params), config)
    return path


def naming(adapter: Path, path: Path, base: str) -> Path:
    shutil.copytree(adapter, path)
    content = json.loads((path / CONFIG_FILE).read_text()) | {"base_model_name_or_path": base}
    (path / CONFIG_FILE).write_text(json.dumps(content))
    return path


def test_every_reader_of_adapters_warns(model_dir, adapter, tmp_path, caplog, capsys):
    other = other_model(model_dir, tmp_path / "other")
    said = f"the adapter in {adapter} was trained on {model_dir}, and the model is {other}"
    with caplog.at_level(logging.WARNING, "lcjax"):
        lcjax.load_adapter(lcjax.from_pretrained(model_dir)[0], adapter)
        assert caplog.messages == []
        lcjax.load_adapter(lcjax.from_pretrained(other)[0], adapter)
    [line] = caplog.messages
    assert line == f"{said}; load it with the former"
    assert convert([str(other), str(tmp_path / "merged"), "--adapter", str(adapter)]) == 0
    assert f"warning: {said}" in capsys.readouterr().err


def test_copies_are_the_same_model(model_dir, adapter, tmp_path):
    """Moved, in another dtype, and as a file whose origin is not known."""
    shutil.copytree(model_dir, tmp_path / "moved")
    for name in ("half", "m.gguf"):
        assert (
            convert([str(model_dir), str(tmp_path / name), *(["--dtype", "bfloat16"] if name == "half" else [])]) == 0
        )
    for model in (*("moved", "half", "m.gguf", "absent"), "owner/name"):
        assert other_base(adapter, str(tmp_path / model) if "/" not in model else model) is None


@pytest.mark.parametrize(
    ("base", "model", "differ"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", True),
        ("meta-llama/Meta-Llama-3-8B", "unsloth/llama-3-8b-bnb-4bit", False),
        ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "Qwen/Qwen3-8B", False),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base", True),
        ("Qwen/Qwen3-8B", "/root/.cache/huggingface/hub/models--Qwen--Qwen3-8B/snapshots/abc", False),
        ("Qwen/Qwen3-8B", "/root/.cache/huggingface/hub/models--Qwen--Qwen3-8B-Base/snapshots/abc", True),
        ("Qwen/Qwen3-8B", "/models/another", False),
        ("/models/absent", "/models/another", False),
        ("", "Qwen/Qwen3-8B", False),
    ],
)
def test_names_on_the_hub(adapter, tmp_path, base, model, differ):
    found = other_base(naming(adapter, tmp_path / "adapter", base), model)
    assert (found is not None) == differ
    assert found is None or f"was trained on {base}, and the model is {model}" in found
