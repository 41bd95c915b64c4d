"""GGUF files that `lcjax.convert` and `save_gguf` write, read by lcjax and by the gguf library."""

import dataclasses
import math
import tracemalloc
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
import transformers
from gguf import GGMLQuantizationType as Type

import lcjax
from lcjax import weights
from lcjax.config import RopeScaling
from lcjax.errors import InputError
from lcjax.generate import stop_ids
from lcjax.model.params import tensor_names
from tests.support.gguf_models import KINDS, LONGROPE, TEMPLATE, assert_same_bits, config_of, converted
from tests.support.gguf_writing import gguf_name, permute
from tests.support.settings import model_settings
from tests.support.thin import thinned
from tests.support.tiny_llama import random_params


def expected_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Returns the float32 tensors by their names in the file, with llama.cpp's order of rows."""
    config, params, _ = weights.load_model_files(folder, "float32")
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    heads = heads if config.model_type in ("llama", "mistral", "smollm3") else {}
    tensors = {}
    for name in tensor_names(config):
        leaf = params
        for key in name.path:
            leaf = leaf[key]
        # That of experts has an axis of them.
        array = np.asarray(leaf if name.layer is None else leaf[name.layer])
        module = name.path[-2]
        array = array + config.family.norms.offset if array.ndim == 1 else array
        in_file = name.name.replace(f".experts.{name.expert}.", ".experts.")
        key = gguf_name(in_file, post_norms=config.family.norms.after_mlp is not None)
        tensors[key] = permute(array, heads[module]) if module in heads else array
    return tensors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16"])
def test_round_trip(small_model_of, tmp_path, kind, type_name):
    source = small_model_of(**KINDS[kind])
    path = converted(source, tmp_path / "m.gguf", "--type", type_name)
    config, params, _ = weights.load_model_files(source, "float32")
    found_config, found = weights.load_gguf(path, "float32")
    assert_same_bits(found, params)
    reading = {"model_type": "llama"} if kind == "mistral" else {}
    expected = dataclasses.replace(config, eos_token_id=0, sliding_window=KINDS[kind].get("sliding_window"), **reading)
    assert {**vars(found_config), "own_values": ()} == {**vars(expected), "own_values": ()}
    assert found_config.views == config.views
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    tensors = expected_tensors(source)
    assert {name for name in stored if not name.startswith("rope_")} == tensors.keys()
    for name, array in tensors.items():
        kind_of = Type.F32 if array.ndim == 1 or "ffn_gate_inp" in name else Type[type_name.upper()]
        assert stored[name].tensor_type == kind_of, name
        assert stored[name].shape.tolist() == list(array.shape)[::-1]
        np.testing.assert_array_equal(gguf.quants.dequantize(stored[name].data, kind_of).reshape(array.shape), array)


@pytest.mark.parametrize(("type_name", "outside"), [("q8_0", Type.Q8_0), ("q4_0", Type.Q8_0)])
def test_blocks_have_the_library_s_numbers(small_model_of, tmp_path, type_name, outside, capsys):
    # The rows of down_proj are not whole blocks of 32.
    source = small_model_of(intermediate_size=72)
    path = converted(source, tmp_path / "m.gguf", "--type", type_name)
    assert (
        f"2 of 21 tensors are stored in f16, because their rows of 72 values are not whole blocks of {type_name}"
        in (capsys.readouterr().out)
    )
    for tensor in gguf.GGUFReader(path).tensors:
        array = expected_tensors(source)[tensor.name]
        kind = Type[type_name.upper()] if tensor.name.startswith("blk.") else outside
        kind = Type.F16 if "ffn_down" in tensor.name else Type.F32 if array.ndim == 1 else kind
        assert tensor.tensor_type == kind, tensor.name
        np.testing.assert_array_equal(tensor.data, gguf.quants.quantize(array, kind), err_msg=tensor.name)
    _, found = weights.load_gguf(path, "float32")
    _, before, _ = weights.load_model_files(source, "float32")
    errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), found, before)
    assert errors["norm"]["weight"] == 0.0
    assert 0.0 < errors["layers"]["mlp"]["up_proj"]["weight"] < 0.1


def test_metadata(small_llama, tmp_path):
    path = converted(small_llama, tmp_path / "m.gguf", "--type", "q8_0")
    fields = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "tiny-model",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q8_0,
        "general.quantization_version": 2,
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.attention.value_length": 32,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 500_000.0,
        "llama.vocab_size": 330,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.ggml.eom_token_id": 5,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    assert {key: fields.get(key) for key in expected} == expected
    assert np.float32(fields["llama.attention.layer_norm_rms_epsilon"]) == np.float32(1e-5)
    assert len(fields["tokenizer.ggml.tokens"]) == len(fields["tokenizer.ggml.token_type"]) == 330


def test_the_tokenizer_and_its_ends_come_back(small_llama, small_tokenizer, tmp_path, texts):
    path = converted(small_llama, tmp_path / "m.gguf")
    found = weights.load_tokenizer(path)
    for text in [*texts, "  1  22\n\n\t§ <eos> x"]:
        ids = small_tokenizer(text)["input_ids"]
        assert found(text)["input_ids"] == ids
        assert found.decode(ids) == small_tokenizer.decode(ids)
    assert found.chat_template == TEMPLATE
    assert (found.eos_token, found.bos_token) == (small_tokenizer.eos_token, None)
    assert stop_ids(found, path) == stop_ids(small_tokenizer, small_llama) == {0, 2, 5}


@pytest.mark.parametrize("kind", thinned(["llama", "llama, tied", "qwen2", "qwen3"], lambda kind: kind == "llama"))
def test_transformers_reads_the_same(small_model_of, small_tokenizer, tmp_path, texts, kind):
    # It does not read the size of heads of these families.
    source = small_model_of(**KINDS[kind], **{"qwen2": {"head_dim": 16}, "qwen3": {"head_dim": 128}}.get(kind, {}))
    converted(source, tmp_path / "m.gguf", "--type", "f32")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")
    expected = transformers.AutoModelForCausalLM.from_pretrained(source).state_dict()
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name].numpy(), err_msg=name)
    found = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in texts:
        assert found(text)["input_ids"] == small_tokenizer(text)["input_ids"]


def test_the_merged_adapter_is_that_of_the_merged_checkpoint(small_llama, tmp_path):
    model, tokenizer = lcjax.from_pretrained(small_llama, dtype="float32")
    adapted = lcjax.get_peft_model(model, r=2)
    noise = iter(jax.random.split(jax.random.key(7), 99))
    params = jax.tree.map_with_path(
        lambda path, leaf: leaf + jax.random.normal(next(noise), leaf.shape) if path[-1].key == "lora_B" else leaf,
        adapted.params,
    )
    adapted = lcjax.Llama(adapted.config, params, adapted.settings)
    lcjax.save_pretrained(adapted, tmp_path / "adapter")
    lcjax.save_merged(adapted, tmp_path / "merged", tokenizer)
    lcjax.save_gguf(adapted, tmp_path / "api.gguf", tokenizer, type="f32")
    converted(small_llama, tmp_path / "cli.gguf", "--type", "f32", "--adapter", tmp_path / "adapter")
    _, merged, _ = weights.load_model_files(tmp_path / "merged", "float32")
    for name in ("api.gguf", "cli.gguf"):
        assert_same_bits(weights.load_gguf(tmp_path / name, "float32")[1], merged)
    _, before, _ = weights.load_model_files(small_llama, "float32")
    assert not np.array_equal(*(tree["layers"]["mlp"]["up_proj"]["weight"] for tree in (merged, before)))


def test_the_type_follows_the_model(small_llama, tmp_path):
    types = {}
    for dtype in ("float32", "bfloat16"):
        model, tokenizer = lcjax.from_pretrained(small_llama, dtype=dtype)
        lcjax.save_gguf(model, tmp_path / "m.gguf", tokenizer, overwrite=True)
        types[dtype] = {tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert types == {"float32": {Type.F32, Type.F16}, "bfloat16": {Type.F32, Type.BF16}}
    with pytest.raises(InputError, match="type='q5_k' is unknown"):
        lcjax.save_gguf(model, tmp_path / "other.gguf", tokenizer, type="q5_k")
    assert not (tmp_path / "other.gguf").exists()


ROPES = {
    "linear": RopeScaling("linear", 3.0),
    "yarn": RopeScaling("yarn", 4.0, original_max_position_embeddings=32),
    "yarn without a factor of attention": RopeScaling(
        "yarn", 4.0, original_max_position_embeddings=32, attention_factor=1.0
    ),
    "llama3": RopeScaling("llama3", 8.5, 1.0, 4.0, 32),
}


@pytest.mark.parametrize("kind", ROPES)
def test_rope_scaling_comes_back(small_tokenizer, tmp_path, kind):
    config = config_of(num_hidden_layers=1, rope_scaling=ROPES[kind])
    model = lcjax.Llama(config, random_params(config), model_settings(64))
    lcjax.save_gguf(model, tmp_path / "m.gguf", small_tokenizer)
    assert weights.open_model_files(tmp_path / "m.gguf").config.rope_scaling == ROPES[kind]


@pytest.mark.parametrize("factor", [None, 1.25])
def test_longrope_is_written_as_by_llama_cpp(small_model_of, tmp_path, factor):
    """The converter writes the attention factor, which llama.cpp does not compute, and no type."""
    scaling = dataclasses.replace(LONGROPE["rope_scaling"], attention_factor=factor)
    source = small_model_of(**LONGROPE | {"rope_scaling": scaling})
    path = converted(source, tmp_path / "m.gguf", "--type", "f32")
    reader = gguf.GGUFReader(path)
    keys = {key: field.contents() for key, field in reader.fields.items() if "rope" in key or "sliding" in key}
    assert keys.pop("phi3.rope.scaling.attn_factor") == np.float32(factor or math.sqrt(1 + math.log(2) / math.log(64)))
    assert keys == {
        "phi3.rope.dimension_count": 24,
        "phi3.rope.freq_base": 500_000.0,
        "phi3.rope.scaling.original_context_length": 64,
        "phi3.attention.sliding_window": 0,
    }
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for kind in ("short", "long"):
        tensor = stored[f"rope_factors_{kind}.weight"]
        assert tensor.tensor_type == Type.F32
        np.testing.assert_array_equal(tensor.data, np.array(getattr(scaling, f"{kind}_factor"), np.float32))
    assert weights.open_model_files(path).config.rope_scaling == scaling


def test_a_tensor_is_encoded_in_parts(small_tokenizer, tmp_path):
    """The peak is the largest tensor and a few MB, and rows that are interleaved come out right."""
    config = config_of(vocab_size=30_000, hidden_size=512, num_attention_heads=64, num_key_value_heads=32)
    content = weights.gguf_content(config, small_tokenizer, "q8_0", name="m")
    made = {}

    def fetch(name):
        made.clear()
        generator = np.random.default_rng(len(name.name))
        made[name.name] = generator.standard_normal(name.shape, np.float32)
        return made[name.name]

    tracemalloc.start()
    try:
        weights.write_gguf(tmp_path / "m.gguf", content, fetch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    largest = 30_000 * 512 * 4
    assert largest < peak < 1.6 * largest
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for name in tensor_names(config):
        if name.name.endswith("1.self_attn.q_proj.weight"):
            expected = gguf.quants.quantize(permute(fetch(name), 64), Type.Q8_0)
            np.testing.assert_array_equal(stored["blk.1.attn_q.weight"], expected)
