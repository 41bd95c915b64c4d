import json

import jax
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from states import TORCH_DTYPES, assert_equal_states, state_dict_of

from lcjax.config import LlamaConfig
from lcjax.errors import InputError
from lcjax.weights import load_config, load_params, save_checkpoint
from lcjax.weights.assembly import assemble, parameter_dtype
from lcjax.weights.hf import INDEX, SINGLE_FILE
from lcjax.weights.names import tensor_names

VARIANTS = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "one layer": {"num_hidden_layers": 1},
}


@pytest.mark.parametrize("max_shard_size", ["1GB", "20KB"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loads_what_transformers_saves(tiny_llama, tmp_path, variant, max_shard_size):
    model = tiny_llama(**VARIANTS[variant])
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / INDEX).exists() == (max_shard_size == "20KB")
    expected = model.state_dict()
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert_equal_states(state_dict_of(load_params(tmp_path, load_config(tmp_path), "float32")), expected)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_casts_as_torch_does(tiny_llama, tmp_path, stored, dtype):
    model = tiny_llama().to(stored)
    model.save_pretrained(tmp_path)
    expected = {name: tensor.to(TORCH_DTYPES[dtype]) for name, tensor in model.state_dict().items()}
    assert_equal_states(state_dict_of(load_params(tmp_path, load_config(tmp_path), dtype)), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_shard_bytes", [2**30, 20_000])
@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_loads_what_is_saved(tiny_llama, tmp_path, variant, max_shard_bytes, dtype):
    model = tiny_llama(**VARIANTS[variant]).to(TORCH_DTYPES[dtype])
    model.save_pretrained(tmp_path / "in")
    config = load_config(tmp_path / "in")
    params = load_params(tmp_path / "in", config, dtype)
    save_checkpoint(tmp_path / "out", params, config, max_shard_bytes=max_shard_bytes)
    assert (tmp_path / "out" / INDEX).exists() == (max_shard_bytes == 20_000)
    again, report = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert_equal_states(again.state_dict(), model.state_dict())
    assert load_config(tmp_path / "out") == config
    reloaded = load_params(tmp_path / "out", config, dtype)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), reloaded, params))


def test_saved_config_means_the_same_to_transformers(tiny_llama, tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = tiny_llama(rope_parameters=rope, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=[2, 3])
    model.save_pretrained(tmp_path / "in")
    config = load_config(tmp_path / "in")
    save_checkpoint(tmp_path / "out", load_params(tmp_path / "in", config, "float32"), config)
    before, after = (transformers.LlamaConfig.from_pretrained(tmp_path / name).to_dict() for name in ("in", "out"))
    assert after == before


def test_shards_keep_to_their_size_and_to_the_library_format(tiny_llama, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "in")
    config = load_config(tmp_path / "in")
    save_checkpoint(tmp_path / "out", load_params(tmp_path / "in", config, "float32"), config, max_shard_bytes=10_000)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert shards == [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    total = 0
    for shard in shards:
        tensors = load_file(tmp_path / "out" / shard)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 10_000 or len(tensors) == 1
        assert {name for name, file in index["weight_map"].items() if file == shard} == tensors.keys()
        with safe_open(tmp_path / "out" / shard, "numpy") as file:
            assert file.metadata() == {"format": "pt"}
        total += size
    assert index["metadata"]["total_size"] == total


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_leaves_are_the_buffers_that_were_read_into(tiny_llama, dtype):
    """On the CPU nothing is copied; a jax that no longer aliases would double the memory of loading."""
    config = LlamaConfig.from_dict(tiny_llama().config.to_dict())
    addresses = {}

    def read(name, out):
        addresses.setdefault(name.path, out.ctypes.data)
        out[...] = 1

    tree = assemble(tensor_names(config), read, config.num_hidden_layers, parameter_dtype(dtype))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert leaf.unsafe_buffer_pointer() == addresses[tuple(key.key for key in path)]


@pytest.fixture
def saved(tiny_llama, tmp_path):
    """A saved tiny model and a function that rewrites its tensors."""
    tiny_llama().save_pretrained(tmp_path)

    def rewrite(change):
        tensors = load_file(tmp_path / SINGLE_FILE)
        change(tensors)
        save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})

    return tmp_path, rewrite


def refusal(directory) -> str:
    """The message of the InputError that loading raises, which is one line."""
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


@pytest.fixture
def sharded(tiny_llama, tmp_path):
    tiny_llama().save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path


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
    assert f"does not list {name}, which {file} holds" in refusal(sharded)
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


def test_unsupported_dtype(saved):
    directory, _ = saved
    with pytest.raises(InputError, match="float16 is not supported"):
        load_params(directory, load_config(directory), "float16")


@pytest.mark.parametrize("fault", ["extra", "lacking", "misshapen", "mixed"])
def test_saving_another_tree_is_a_bug_of_the_caller(saved, fault):
    directory, _ = saved
    config = load_config(directory)
    params = load_params(directory, config, "float32")
    norm = params["norm"]
    if fault == "extra":
        norm["lora_A"] = norm["weight"]
    elif fault == "lacking":
        del norm["weight"]
    elif fault == "misshapen":
        norm["weight"] = norm["weight"][1:]
    else:
        norm["weight"] = norm["weight"].astype("bfloat16")
    with pytest.raises(ValueError, match="bfloat16 and float32" if fault == "mixed" else "norm"):
        save_checkpoint(directory / "out", params, config)
    assert not (directory / "out").exists()


def test_saving_over_a_former_checkpoint_leaves_one(sharded):
    config = load_config(sharded)
    params = load_params(sharded, config, "float32")
    (sharded / "README.md").write_text("mine")
    before = {path.name for path in sharded.iterdir()}
    save_checkpoint(sharded, params, config)
    assert {path.name for path in sharded.iterdir()} == {name for name in before if not name.startswith("model")} | {
        SINGLE_FILE
    }
    assert (sharded / "README.md").read_text() == "mine"
    reloaded = load_params(sharded, config, "float32")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), reloaded, params))


def test_tokenizer_and_config_travel_along(saved, smollm2, tmp_path_factory):
    from lcjax.weights import load_tokenizer

    directory, _ = saved
    config = load_config(directory)
    out = tmp_path_factory.mktemp("out") / "deep" / "er"
    save_checkpoint(out, load_params(directory, config, "float32"), config, load_tokenizer(smollm2))
    assert load_tokenizer(out)("def f(x):\n    return x")["input_ids"]
