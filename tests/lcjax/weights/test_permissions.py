"""An unreadable file gives a message about its permissions, and not advice to download it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

import lcjax
from lcjax import weights
from lcjax.errors import InputError

NOBODY = 65534


@pytest.fixture
def folder(model_dir):
    """The tiny model in a readable folder, and a process without root's permissions."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        folder = Path(parent) / "model"
        shutil.copytree(model_dir, folder)
        (folder / "generation_config.json").write_text("{}")
        folder.chmod(0o755)
        for path in folder.iterdir():
            path.chmod(0o644)
        me = os.geteuid()
        yield folder
        if me == 0:
            os.seteuid(0)
        folder.chmod(0o755)


def locked(path: Path) -> None:
    path.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_a_file_that_may_not_be_read(folder, name):
    locked(folder / name)
    with pytest.raises(InputError, match="cannot be read") as caught:
        lcjax.from_pretrained(folder)
    assert "permission" in str(caught.value)
    assert "download" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_may_not_be_listed(folder):
    locked(folder.parent)
    with pytest.raises(InputError, match=r"model cannot be read \(Permission denied\); check the path and its perm"):
        weights.resolve_model(folder)


@pytest.mark.parametrize("name", ["x" * 5000, "x/" + "y" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have(name):
    with pytest.raises(InputError) as caught:
        weights.resolve_model(name)
    assert len(str(caught.value)) < 6000
