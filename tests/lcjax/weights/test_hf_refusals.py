"""Damaged, incomplete or unsupported Hugging Face directories: one line, before reading weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lcjax.errors import InputError
from lcjax.weights import load_config, load_params
from lcjax.weights.hf import INDEX, SINGLE_FILE
from tests.support.states import assert_equal_states, state_dict_of


def refusal(directory) -> str:
    """Returns the message of the InputError that loading raises. It must be one line."""
    with pytest.raises(InputError) as caught:
        load_params(directory, load_config(directory), "float32")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_fault_of_names_and_shapes_is_named(saved):
    directory, rewrite = saved

    def change(tensors):
        tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(1)
        for layer in range(3):
            del tensors[f"model.layers.{layer}.mlp.gate_proj.weight"]
        del tensors["model.layers.1.input_layernorm.weight"]
        tensors["model.norm.weight"] = torch.zeros(25)

    rewrite(change)
    message = refusal(directory)
    assert str(directory) in message
    assert "1 unknown (model.layers.9.mlp.up_proj.weight)" in message
    assert "4 missing (model.layers.1.input_layernorm.weight, model.layers.0.mlp.gate_proj.weight" in message
    assert "model.layers.2" not in message, "only the first few are listed"
    assert "1 misshapen (model.norm.weight is [25] and the config says [24])" in message
    assert "config.json" in message


def test_transposed_weight_is_misshapen(saved):
    directory, rewrite = saved
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
    assert f"{name} is [24, 40] and the config says [40, 24]" in refusal(directory)


def test_missing_head_of_an_untied_model(saved):
    directory, rewrite = saved
    rewrite(lambda tensors: tensors.pop("lm_head.weight"))
    assert "1 missing (lm_head.weight)" in refusal(directory)


@pytest.mark.parametrize("equal", [True, False])
def test_head_in_a_tied_checkpoint(tiny_llama, tmp_path, equal):
    model = tiny_llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / SINGLE_FILE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    if not equal:
        tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, tmp_path / SINGLE_FILE)
    if equal:
        del tensors["lm_head.weight"]
        assert_equal_states(state_dict_of(load_params(tmp_path, load_config(tmp_path), "float32")), tensors)
    else:
        message = refusal(tmp_path)
        assert "lm_head.weight differs from model.embed_tokens.weight" in message
        assert "tie_word_embeddings" in message


def test_rotary_buffers_are_tolerated_and_other_buffers_are_not(saved):
    directory, rewrite = saved
    rewrite(lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}))
    load_params(directory, load_config(directory), "float32")
    rewrite(lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.cos_cached": torch.zeros(4)}))
    assert "1 unknown (model.layers.0.self_attn.rotary_emb.cos_cached)" in refusal(directory)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float64, torch.float8_e4m3fn])
def test_other_stored_dtypes_are_refused(saved, dtype):
    directory, rewrite = saved
    rewrite(lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].to(dtype)}))
    message = refusal(directory)
    assert "model.norm.weight is stored as" in message
    assert "F32, F16, BF16" in message


@pytest.mark.parametrize("keep", [0, 4, 100, 10_000, -1])
def test_truncated_file(saved, keep):
    directory, _ = saved
    path = directory / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} " in refusal(directory)
    assert "truncated or corrupt" in refusal(directory)


@pytest.mark.parametrize(
    "header", [b"", b"[]", b'{"a": 1}', b"\xff\xfe", b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}']
)
def test_corrupt_header(saved, header):
    directory, _ = saved
    (directory / SINGLE_FILE).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    assert "truncated or corrupt" in refusal(directory)


def test_header_of_absurd_length(saved):
    directory, _ = saved
    (directory / SINGLE_FILE).write_bytes(b"\xff" * 16)
    assert "truncated or corrupt" in refusal(directory)


def test_missing_shard(sharded):
    shard = sharded / "model-00002-of-00005.safetensors"
    shard.unlink()
    assert f"{shard} is missing" in refusal(sharded)


def test_truncated_shard(sharded):
    shard = sharded / "model-00003-of-00005.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert str(shard) in refusal(sharded)


@pytest.mark.parametrize(
    "index",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../other/model.safetensors"}}',
    ],
)
def test_bad_index(sharded, index):
    (sharded / INDEX).write_text(index)
    assert f"{sharded / INDEX} is not a valid index" in refusal(sharded)


def test_index_and_shards_must_agree(sharded):
    index = json.loads((sharded / INDEX).read_text())
    name = "model.norm.weight"
    file = index["weight_map"].pop(name)
    (sharded / INDEX).write_text(json.dumps(index))
    assert f"does not list {name}, which is in {file}" in refusal(sharded)
    index["weight_map"] |= {name: file, "model.extra": file}
    (sharded / INDEX).write_text(json.dumps(index))
    assert "lists 1 tensors that its files lack (model.extra)" in refusal(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_unopened(saved, name):
    directory, _ = saved
    (directory / SINGLE_FILE).unlink()
    (directory / name).write_bytes(b"never read")
    message = refusal(directory)
    assert name in message
    assert "safe_serialization=True" in message


def test_directory_without_weights(saved):
    directory, _ = saved
    (directory / SINGLE_FILE).unlink()
    assert f"{directory} has no model.safetensors" in refusal(directory)


def test_code_in_the_directory_never_runs(saved):
    directory, _ = saved
    marker = directory / "executed"
    (directory / "modeling_poison.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {name: "modeling_poison.Poison" for name in ("AutoConfig", "AutoModelForCausalLM")}
    (directory / "config.json").write_text(json.dumps(config))
    load_params(directory, load_config(directory), "float32")
    assert not marker.exists()
    exec((directory / "modeling_poison.py").read_text(), {})
    assert marker.exists(), "the trap works"
