"""A checkpoint whose experts bitsandbytes has stored in NF4, one linear map at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bitsandbytes.functional as bnb
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lcjax
from lcjax import weights
from lcjax.errors import InputError
from lcjax.ops import nf4
from lcjax.weights.hf import SINGLE_FILE
from tests.support.gguf_models import KINDS

LAYERS, EXPERTS = 2, 5
SIZES = {"moe_intermediate_size": 128, "num_experts": EXPERTS, "num_experts_per_tok": 2, "norm_topk_prob": True}


@pytest.fixture(scope="module")
def plain(small_model_of) -> Path:
    return small_model_of(**KINDS["qwen3_moe"] | {"own_values": tuple(SIZES.items())})


def quantized(
    plain: Path, directory: Path, double: bool, *, router: bool = False
) -> tuple[Path, dict[str, torch.Tensor]]:
    """Returns the checkpoint and its weights as bitsandbytes dequantizes them."""
    shutil.copytree(plain, directory)
    tensors, values = load_file(plain / SINGLE_FILE), {}
    for name in [name for name in tensors if name.endswith("_proj.weight") or (router and "gate.weight" in name)]:
        codes, state = bnb.quantize_4bit(tensors.pop(name), quant_type="nf4", compress_statistics=double)
        tensors[name] = codes
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in state.as_dict(packed=True).items()}
        values[name] = bnb.dequantize_4bit(codes, state)
    save_file(tensors, directory / SINGLE_FILE, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": double, "bnb_4bit_quant_storage": "uint8",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    return directory, values


@pytest.mark.parametrize("double", [True, False])
def test_each_expert_has_the_values_of_bitsandbytes(plain, tmp_path, double):
    """They stay in NF4, also under an adapter, and compute what the dequantized model does."""
    folder, values = quantized(plain, tmp_path / "bnb", double)
    model, tokenizer = lcjax.from_pretrained(folder, dtype="float32")
    layers = model.params["layers"]
    assert len(values) == LAYERS * (4 + 3 * EXPERTS)
    for name, expected in values.items():
        _, _, layer, part, *rest = name.split(".")
        index, tree = (int(layer),), layers[part]
        if rest[0] == "experts":
            index, tree = (*index, int(rest[1])), tree["experts"]
        leaf = jax.tree.map(lambda stack, index=index: stack[index], tree[rest[-2]]["weight"])
        assert "codes" in leaf
        np.testing.assert_array_equal(nf4.dequantize(leaf, jnp.float32), expected.numpy(), err_msg=name)
    lcjax.save_merged(model, tmp_path / "merged", tokenizer)
    merged = load_file(tmp_path / "merged" / SINGLE_FILE)
    assert all(torch.equal(merged[name], expected) for name, expected in values.items())
    ids = jnp.arange(24)[None]
    adapted = lcjax.get_peft_model(model, r=2)
    expected = np.asarray(lcjax.from_pretrained(tmp_path / "merged", dtype="float32")[0](ids))
    np.testing.assert_allclose(np.asarray(adapted(ids)), expected, atol=1e-5, rtol=1e-5)


def test_experts_that_differ_in_format_are_refused(plain, tmp_path):
    folder, _ = quantized(plain, tmp_path / "bnb", True)
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    tensors = load_file(folder / SINGLE_FILE)
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(name)}
    tensors[name] = load_file(plain / SINGLE_FILE)[name]
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"is nf4 with quantized scales and \S*experts.3.up_proj.weight not quantized"):
        weights.open_model_files(folder)


def test_a_router_in_four_bits_is_refused(plain, tmp_path):
    folder, _ = quantized(plain, tmp_path / "bnb", True, router=True)
    with pytest.raises(InputError, match=r"mlp\.gate\.weight is quantized but is not a weight of a layer's linear map"):
        weights.open_model_files(folder)
