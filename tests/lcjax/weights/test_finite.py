"""A weight that is not finite is named before it is used."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lcjax import weights
from lcjax.convert.__main__ import main as convert
from lcjax.errors import InputError
from lcjax.weights.assembly import require_finite
from tests.support.gguf_writing import add_model, write

VALUES = [float("nan"), float("inf"), float("-inf")]
NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 2**18, 2**18 + 3])
def test_the_first_is_found_anywhere_and_finite_numbers_are_not_flagged(dtype, size):
    info = ml_dtypes.finfo(dtype)
    extremes = np.array([info.max, -float(info.max), info.smallest_subnormal, 0.0, -0.0, 1.0], dtype)
    values = np.resize(extremes, size)
    require_finite(values, "file", "tensor")
    for place in {0, size // 2, size - 1}:
        for value in VALUES:
            spoiled = values.copy()
            spoiled[place] = value
            with pytest.raises(InputError, match=rf"^file: tensor is -?(nan|inf) at \[{place}\] "):
                require_finite(spoiled, "file", "tensor")


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_a_directory(tiny_llama, tmp_path, value, stored, quantize):
    model = tiny_llama(hidden_size=64, intermediate_size=64, head_dim=16).to(stored)
    with torch.no_grad():
        model.get_parameter(NAME)[3, 5] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"model.safetensors: {NAME} is {value} at \[3, 5\]"):
        weights.load_model_files(tmp_path, "bfloat16", quantize)


def test_a_gguf_file_and_its_conversion(tiny_llama, tmp_path, capsys):
    model = tiny_llama()
    with torch.no_grad():
        model.get_parameter(NAME)[3, 5] = float("nan")
    path = write(tmp_path / "m.gguf", lambda writer: add_model(writer, model))
    with pytest.raises(InputError, match=r"m.gguf: blk.1.ffn_up.weight is nan at \[3, 5\]"):
        weights.load_gguf(path, "float32")
    assert not (tmp_path / "out").exists()


def test_a_conversion_writes_nothing(model_dir, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model_dir.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors[NAME][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert convert([str(folder), str(tmp_path / "out")]) == 2
    assert f"{NAME} is nan at [0, 0]" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_value_too_large_for_bfloat16_is_named_with_the_dtype(tiny_llama, tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        model.get_parameter(NAME)[0, 0] = 3.4e38
    model.save_pretrained(tmp_path)
    weights.load_model_files(tmp_path, "float32")
    with pytest.raises(InputError, match=r"is inf at \[0, 0\] \(as bfloat16\)"):
        weights.load_model_files(tmp_path, "bfloat16")
