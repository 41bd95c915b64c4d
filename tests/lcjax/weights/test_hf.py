import json

import jax
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

from lcjax.config import LlamaConfig
from lcjax.errors import InputError
from lcjax.model.params import tensor_names
from lcjax.weights import load_config, load_params, save_checkpoint
from lcjax.weights.assembly import assemble, parameter_dtype
from lcjax.weights.hf import INDEX, SINGLE_FILE
from tests.support.states import TORCH_DTYPES, assert_equal_states, state_dict_of

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


def test_transformers_reads_the_saved_config(tiny_llama, tmp_path):
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
def test_leaves_alias_the_buffers_that_were_read(tiny_llama, dtype):
    """On the CPU, nothing is copied. Without aliasing, loading would need twice the memory."""
    config = LlamaConfig.from_dict(tiny_llama().config.to_dict())
    addresses = {}

    def read(name, out, start=0):
        addresses.setdefault(name.path, out.ctypes.data)
        out[...] = 1

    tree = assemble(tensor_names(config), read, parameter_dtype(dtype))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert leaf.unsafe_buffer_pointer() == addresses[tuple(key.key for key in path)]


def test_unsupported_dtype(saved):
    directory, _ = saved
    with pytest.raises(InputError, match="float16 is not supported"):
        load_params(directory, load_config(directory), "float16")


@pytest.mark.parametrize("fault", ["extra", "lacking", "misshapen", "mixed"])
def test_saving_a_wrong_tree_is_a_bug_of_the_caller(saved, fault):
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


def test_saving_over_a_checkpoint_removes_its_files(sharded):
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


def test_tokenizer_and_config_are_copied(saved, smollm2, tmp_path_factory):
    from lcjax.weights import load_tokenizer

    directory, _ = saved
    config = load_config(directory)
    out = tmp_path_factory.mktemp("out") / "deep" / "er"
    save_checkpoint(out, load_params(directory, config, "float32"), config, load_tokenizer(smollm2))
    assert load_tokenizer(out)("def f(x):\n    return x")["input_ids"]
