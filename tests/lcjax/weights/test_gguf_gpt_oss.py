"""GGUF files of gpt-oss: gate and up are two tensors, and experts may be in MXFP4."""

from __future__ import annotations

import re

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file

import lcjax
from lcjax import weights
from lcjax.config import RopeScaling
from lcjax.errors import InputError
from lcjax.model.params import tensor_names
from lcjax.ops import mxfp4
from lcjax.parallel.loading import Rows
from lcjax.weights.hf import SINGLE_FILE
from tests.support.gguf_models import assert_same_bits, config_of, converted

YARN = RopeScaling("yarn", 32.0, original_max_position_embeddings=4, truncate=False)
GPT_OSS = {
    "model_type": "gpt_oss",
    "attention_bias": True,
    "sliding_window": 20,
    "rope_scaling": YARN,
    "own_values": (("num_local_experts", 5), ("num_experts_per_tok", 2)),
}
LAYERS = 2


@pytest.fixture(scope="module")
def source(small_model_of):
    return small_model_of(**GPT_OSS)


def expected_tensors(source) -> dict[str, np.ndarray]:
    """Returns float32 tensors with the names and the layout of llama.cpp's converter."""
    names, found = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT_OSS, LAYERS), {}
    for name, array in load_file(source / SINGLE_FILE).items():
        kind = "bias" if name.endswith("bias") else "weight"
        module = re.sub(r"[._](bias|weight)$", "", name)
        array = np.swapaxes(array, 1, 2) if array.ndim == 3 else array
        parts = {module: array}
        if module.endswith("gate_up_proj"):
            parts = {module.replace("gate_up", part): array[:, i::2] for i, part in enumerate(("gate", "up"))}
        for part, values in parts.items():
            found[f"{names.get_name(part)}.{kind}"] = values
    return found


@pytest.mark.parametrize("type_name", ["f32", "bf16"])
def test_round_trip(source, tmp_path, type_name):
    path = converted(source, tmp_path / "m.gguf", "--type", type_name)
    config, params, _ = weights.load_model_files(source, "float32")
    found_config, found = weights.load_gguf(path, "float32")
    assert_same_bits(found, params)
    assert (found_config.rope_scaling, found_config.views) == (YARN, config.views)
    assert found_config.view_of_layer == config.view_of_layer == (0, 1)
    assert found_config.experts == config.experts
    stored, tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}, expected_tensors(source)
    assert stored.keys() == tensors.keys()
    assert "blk.1.post_attention_norm.weight" in stored
    for name, array in tensors.items():
        is_matrix = name.endswith(".weight") and array.ndim > 1 and "gate_inp" not in name
        assert stored[name].tensor_type == (Type[type_name.upper()] if is_matrix else Type.F32), name
        assert stored[name].shape.tolist() == list(array.shape)[::-1]
        data = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)
        np.testing.assert_array_equal(data.reshape(array.shape), array, err_msg=name)


def test_metadata(source, tmp_path):
    reader = gguf.GGUFReader(converted(source, tmp_path / "m.gguf", "--type", "mxfp4"))
    keys = {key: field.contents() for key, field in reader.fields.items() if key.startswith("gpt-oss.")}
    expected = {
        "attention.sliding_window": 20,
        "expert_count": 5,
        "expert_used_count": 2,
        "expert_feed_forward_length": 96,
        "feed_forward_length": 96,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 32.0,
        "rope.scaling.original_context_length": 4,
    }
    assert {key: keys.get(f"gpt-oss.{key}") for key in expected} == expected
    assert "gpt-oss.rope.scaling.attn_factor" not in keys
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_MXFP4_MOE


def test_experts_in_mxfp4_stay_so_and_have_the_library_s_values(source, tmp_path):
    """Written from bfloat16, read as they are, and written again without a change."""
    path = converted(source, tmp_path / "m.gguf", "--type", "mxfp4")
    stored, tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}, expected_tensors(source)
    kinds = {name: tensor.tensor_type for name, tensor in stored.items()}
    assert kinds["blk.1.ffn_up_exps.weight"] == Type.MXFP4
    assert kinds["blk.1.attn_q.weight"] == Type.Q8_0
    model, tokenizer = lcjax.from_pretrained(path, dtype="bfloat16")
    assert model.config.experts.stored_format == "mxfp4"
    experts = model.params["layers"]["mlp"]["experts"]
    values = {}
    for module in ("gate_proj", "up_proj", "down_proj"):
        name = f"blk.1.ffn_{module[:-5]}_exps.weight"
        np.testing.assert_array_equal(stored[name].data, gguf.quants.quantize(tensors[name], Type.MXFP4))
        values[module] = gguf.quants.dequantize(stored[name].data, Type.MXFP4)
    for module, expected in (
        ("gate_up_proj", np.stack([values["gate_proj"], values["up_proj"]], 2).reshape(5, -1, 64)),
        ("down_proj", values["down_proj"]),
    ):
        assert experts[module]["weight"].keys() == {"blocks", "exponents"}
        found = np.asarray(mxfp4.dequantize(experts[module]["weight"], "bfloat16"), np.float32)[1]
        np.testing.assert_array_equal(found, expected)
    lcjax.save_gguf(model, tmp_path / "again.gguf", tokenizer, type="mxfp4")
    again = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "again.gguf").tensors}
    for name, tensor in stored.items():
        if kinds[name] == Type.MXFP4:
            one, other = (gguf.quants.dequantize(data, Type.MXFP4) for data in (tensor.data, again[name]))
            np.testing.assert_array_equal(one, other, err_msg=name)
    adapted = lcjax.get_peft_model(model, r=2, target_modules="gate_up_proj")
    assert np.isfinite(np.asarray(adapted(jnp.arange(24)[None])), dtype=bool).all()


def test_a_process_reads_some_rows_of_an_expert(source, tmp_path):
    path = converted(source, tmp_path / "m.gguf", "--type", "mxfp4")
    checkpoint = weights.open_model_files(path)
    [name] = (n for n in tensor_names(checkpoint.config) if n.name.endswith("layers.1.mlp.experts.gate_up_proj[3]"))
    packing = checkpoint.packed(name)
    assert packing is not None
    whole, rows = weights.load_gguf(path, "float32")[1], Rows((slice(7, 30), slice(101, 102)))
    leaves = whole["layers"]["mlp"]["experts"]["gate_up_proj"]["weight"]
    out = {
        (leaf,): [np.zeros((part.stop - part.start, x.shape[-1]), np.uint8) for part in rows.parts]
        for leaf, x in leaves.items()
    }
    packing.read(rows, out)
    for (leaf,), parts in out.items():
        for part, values in zip(rows.parts, parts, strict=True):
            np.testing.assert_array_equal(values, np.asarray(leaves[leaf])[1, 3, part])
    some = np.empty((3, 64), np.float32)
    checkpoint.read(name, some, 31)
    np.testing.assert_array_equal(
        some, np.asarray(mxfp4.dequantize(jax.tree.map(lambda x: x[1, 3], leaves), "float32"))[31:34]
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"attention_bias": False}, "gpt-oss models cannot express attention_bias=false"),
        ({"rope_scaling": RopeScaling("yarn", 2.0)}, "cannot express YaRN with truncate=true"),
        ({"own_values": (("swiglu_limit", 5.0),)}, "cannot express swiglu_limit=5.0 instead of 7.0"),
        ({"own_values": (("layer_types", ("full_attention",) * 2),)}, "cannot express layer_types other than a window"),
    ],
)
def test_what_the_format_cannot_express_is_refused_by_name(small_tokenizer, fields, said):
    with pytest.raises(InputError, match=re.escape(said)):
        weights.gguf_content(config_of(**GPT_OSS | fields), small_tokenizer, "f16", name="m")


def test_mxfp4_is_for_experts(small_tokenizer):
    with pytest.raises(InputError, match="type='mxfp4' is for models with experts, and llama has none; use q4_0"):
        weights.gguf_content(config_of(), small_tokenizer, "mxfp4", name="m")


def test_an_infinite_scale_is_refused(source, tmp_path):
    path = converted(source, tmp_path / "m.gguf", "--type", "mxfp4")
    [tensor] = (tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.0.ffn_down_exps.weight")
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset) + 17)
        file.write(b"\xff")
    with pytest.raises(
        InputError, match=r"blk.0.ffn_down_exps.weight has a scale of 255, so that weights are infinite"
    ):
        weights.load_gguf(path, "bfloat16")
