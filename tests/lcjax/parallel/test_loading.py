"""Weights go from the file to their devices: each process reads the rows that its devices have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lcjax.config import LlamaConfig, RopeScaling
from lcjax.convert.__main__ import main as convert
from lcjax.parallel.loading import Rows
from lcjax.weights import load_tokenizer, save_checkpoint
from tests.support.gguf_writing import add_model, write
from tests.support.loading_runs import MESHES, loaded_by_2, loaded_on_8
from tests.support.tiny_llama import random_params

# 8 devices have half of a key head each, whose rows are not adjacent in a GGUF file.
FIELDS = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
}
NAN = "model.layers.1.mlp.up_proj.weight"

pytestmark = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="reads /proc")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**FIELDS))
    model.save_pretrained(folder / "plain")
    write(folder / "model.gguf", lambda writer: add_model(writer, model))
    kind = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    quantized = transformers.LlamaForCausalLM.from_pretrained(
        folder / "plain", quantization_config=kind, dtype=torch.float32
    )
    quantized.save_pretrained(folder / "bnb")
    model.save_pretrained(folder / "damaged")
    tensors = load_file(folder / "damaged" / "model.safetensors")
    tensors[NAN][-1, 5] = float("nan")  # in the last process's rows
    save_file(tensors, folder / "damaged" / "model.safetensors", metadata={"format": "pt"})
    return {path.name: path for path in folder.iterdir()}


def test_eight_devices_have_the_bytes_of_one(models, tmp_path):
    found = loaded_on_8(tmp_path, [models["plain"], models["model.gguf"], models["bnb"]])
    assert len(found) == len(MESHES) * 5
    for row in found:
        assert not row["differing"], row
        assert row["same_digest"], row
        # The first device never has more than its own part of the weights.
        assert row["peak"] <= row["own"], row
        if row["mesh"] == "whole on each":
            assert row["own"] == row["whole"]
        elif row["mesh"] == "cut over 8":
            assert row["own"] < row["whole"] / 6  # norms and scales of scales are whole


@pytest.fixture(scope="module")
def mixtures(model_dir, tmp_path_factory) -> list[Path]:
    """Models with experts: one by one, in a tensor of a layer, and in MXFP4."""
    folder = tmp_path_factory.mktemp("mixtures")
    sizes = {**FIELDS, "num_hidden_layers": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e4}
    qwen3 = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "norm_topk_prob": True}
    gpt_oss = {"num_local_experts": 8, "num_experts_per_tok": 2}
    yarn = RopeScaling("yarn", 32.0, original_max_position_embeddings=4, truncate=False)
    made = {
        "experts": LlamaConfig(**sizes, model_type="qwen3_moe", own_values=tuple(qwen3.items())),
        "joint": LlamaConfig(
            **sizes,
            model_type="gpt_oss",
            attention_bias=True,
            sliding_window=20,
            rope_scaling=yarn,
            own_values=tuple(gpt_oss.items()),
        ),
    }
    for name, config in made.items():
        save_checkpoint(folder / name, random_params(config), config, load_tokenizer(model_dir))
    assert convert([str(folder / "joint"), str(folder / "mxfp4.gguf"), "--type", "mxfp4"]) == 0
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def found_by_2(models, mixtures, tmp_path_factory) -> list[list[dict]]:
    """What each of two processes found in every model."""
    dense = [models[name] for name in ("plain", "model.gguf", "bnb", "damaged")]
    return loaded_by_2(tmp_path_factory.mktemp("found"), [*dense, *mixtures])


@pytest.mark.parametrize(
    ("name", "kinds"), [("plain", 2), ("model.gguf", 2), ("bnb", 1), ("experts", 2), ("joint", 2), ("mxfp4.gguf", 2)]
)
def test_each_of_two_processes_reads_its_rows(found_by_2, name, kinds):
    """Also of experts: one by one, in a tensor of a layer, and in MXFP4."""
    for rows in found_by_2:
        found = [row for row in rows if row["model"] == name]
        assert len(found) == 2 * kinds
        for row in found:
            assert not row["differing"], row
            assert row["same_digest"], row
            expected = 0.5 if row["mesh"] == "cut over 4" else 1
            assert row["read"] / row["read_alone"] == pytest.approx(expected, abs=0.05), row


def test_a_process_says_which_value_of_its_rows_is_not_finite(found_by_2):
    pairs = [pair for pair in zip(*found_by_2, strict=True) if pair[0]["model"] == "damaged"]
    assert len(pairs) == 4
    for row, other in pairs:
        cut = row["mesh"] == "cut over 4"
        assert f"{NAN} is nan at [511, 5]" in other["error"]
        assert row["error"] == ("process 1 has stopped: " if cut else "") + other["error"]


def test_rows_of_a_process_that_has_all_of_them():
    rows = Rows((slice(0, 2), slice(2, 3)))
    parts = [np.arange(6).reshape(2, 3), np.arange(6, 9).reshape(1, 3)]
    np.testing.assert_array_equal(rows.join(parts), np.arange(9).reshape(3, 3))
