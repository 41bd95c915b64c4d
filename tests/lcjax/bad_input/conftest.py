"""A folder of invalid files. The tables of invalid inputs refer to it as {w}."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.bad_inputs.damaged import DATA, MODELS


@pytest.fixture(scope="session")
def world(model_dir, data_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(model_dir, folder / "model")
    shutil.copytree(data_dir, folder / "data")
    for name, damage in MODELS.items():
        shutil.copytree(model_dir, folder / name)
        damage(folder / name)
    for name, content in DATA.items():
        (folder / name).write_bytes(content)
    (folder / "nothing").mkdir()
    (folder / "binaries").mkdir()
    (folder / "binaries" / "a.bin").write_bytes(b"\0\1\2")
    (folder / "full").mkdir()
    (folder / "full" / "notes").write_text("here before")
    (folder / "file").write_text("here before")
    (folder / "settings.yaml").write_text("max_step: 4\n")
    (folder / "short.gguf").write_bytes(b"GGUF\3\0\0\0")
    (folder / "text.gguf").write_text("not a model")
    (folder / "prompt.txt").write_text("the old river")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    (folder / "adapter-torn").mkdir()
    (folder / "adapter-torn" / "adapter_config.json").write_text("{")
    return folder
