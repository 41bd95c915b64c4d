"""GGUF files that `lcjax.convert` and `save_gguf` write, read by lcjax and by the gguf library."""

import contextlib
import dataclasses
import errno
import resource
import shutil
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
from lcjax.config import LlamaConfig, RopeScaling
from lcjax.convert.__main__ import main
from lcjax.errors import InputError
from lcjax.generate import stop_ids
from lcjax.model.params import tensor_names
from tests.support.gguf_writing import gguf_name, permute
from tests.support.thin import thinned
from tests.support.tiny_llama import random_params

# All axes have different sizes; heads are not hidden_size / num_attention_heads.
SIZES = {
    "vocab_size": 330,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
}
KINDS = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral"},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
    "olmo2": {"model_type": "olmo2"},
    "smollm3": {"model_type": "smollm3", "own_values": (("pad_token_id", None),)},
}
ENDS = '{"eos_token_id": [0, 2, 5], "temperature": 0.7}'
TEMPLATE = "{% for message in messages %}{{ message['content'] + '<eos>' }}{% endfor %}"


def gemma(model_type: str, tie_word_embeddings: bool = True, **own_values) -> dict:
    """Returns the fields of a Gemma, by default one that GGUF can express."""
    own = {"query_pre_attn_scalar": SIZES["head_dim"]} | own_values
    fields = {"tie_word_embeddings": tie_word_embeddings, "sliding_window": 100, "own_values": tuple(own.items())}
    return {"model_type": model_type, **fields}


KINDS["gemma3"] = gemma("gemma3_text", tie_word_embeddings=False, rope_local_base_freq=5000.0, sliding_window_pattern=2)
KINDS["gemma3"]["rope_scaling"] = RopeScaling("linear", factor=8.0)
KINDS["gemma2"] = gemma("gemma2", attn_logit_softcapping=20.5)


def config_of(**fields) -> LlamaConfig:
    return LlamaConfig(**{**SIZES, **fields})


@pytest.fixture(scope="module")
def tokenizer(model_dir):
    """All bytes and some merges, in fewer tokens than the models have."""
    found = weights.load_tokenizer(model_dir)
    found.chat_template = TEMPLATE
    assert len(found) < SIZES["vocab_size"]
    return found


def in_both_halves(leaf) -> np.ndarray:
    """Rounds to values that float16 and bfloat16 represent, in float32."""
    rounded = np.asarray(leaf.astype("bfloat16").astype("float32"))
    return np.where(np.abs(rounded) < np.finfo(np.float16).smallest_normal, np.float32(0), rounded)


@pytest.fixture(scope="module")
def model_of(tokenizer, tmp_path_factory):
    """Saves a model with random weights that float16 and bfloat16 represent; returns its folder."""

    def save(**fields) -> Path:
        config = config_of(**fields)
        params = jax.tree.map(in_both_halves, random_params(config))
        folder = tmp_path_factory.mktemp("saved") / "tiny-model"
        weights.save_checkpoint(folder, params, config, tokenizer, generation_config=ENDS)
        return folder

    return save


@pytest.fixture(scope="module")
def llama(model_of) -> Path:
    return model_of()


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def converted(source: Path, path: Path, *flags) -> Path:
    assert run(source, path, *flags) == 0
    return path


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(left), np.asarray(right), strict=True)


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
        array = np.asarray(leaf if name.layer is None else leaf[name.layer])
        module = name.path[-2]
        array = array + config.family.norms.offset if array.ndim == 1 else array
        key = gguf_name(name.name, post_norms=config.family.norms.after_mlp is not None)
        tensors[key] = permute(array, heads[module]) if module in heads else array
    return tensors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("type_name", ["f32", "f16", "bf16"])
def test_round_trip(model_of, tmp_path, kind, type_name):
    source = model_of(**KINDS[kind])
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
    assert stored.keys() == tensors.keys()
    for name, array in tensors.items():
        kind_of = Type.F32 if array.ndim == 1 else Type[type_name.upper()]
        assert stored[name].tensor_type == kind_of, name
        assert stored[name].shape.tolist() == list(array.shape)[::-1]
        np.testing.assert_array_equal(gguf.quants.dequantize(stored[name].data, kind_of).reshape(array.shape), array)


@pytest.mark.parametrize(("type_name", "outside"), [("q8_0", Type.Q8_0), ("q4_0", Type.Q8_0)])
def test_blocks_have_the_library_s_numbers(model_of, tmp_path, type_name, outside, capsys):
    # The rows of down_proj are not whole blocks of 32.
    source = model_of(intermediate_size=72)
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


def test_metadata(llama, tmp_path):
    path = converted(llama, tmp_path / "m.gguf", "--type", "q8_0")
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


def test_the_tokenizer_and_its_ends_come_back(llama, tokenizer, tmp_path, texts):
    path = converted(llama, tmp_path / "m.gguf")
    found = weights.load_tokenizer(path)
    for text in [*texts, "  1  22\n\n\t§ <eos> x"]:
        ids = tokenizer(text)["input_ids"]
        assert found(text)["input_ids"] == ids
        assert found.decode(ids) == tokenizer.decode(ids)
    assert found.chat_template == TEMPLATE
    assert (found.eos_token, found.bos_token) == (tokenizer.eos_token, None)
    assert stop_ids(found, path) == stop_ids(tokenizer, llama) == {0, 2, 5}


@pytest.mark.parametrize("kind", thinned(["llama", "llama, tied", "qwen2", "qwen3"], lambda kind: kind == "llama"))
def test_transformers_reads_the_same(model_of, tokenizer, tmp_path, texts, kind):
    # It does not read the size of heads of these families.
    source = model_of(**KINDS[kind], **{"qwen2": {"head_dim": 16}, "qwen3": {"head_dim": 128}}.get(kind, {}))
    converted(source, tmp_path / "m.gguf", "--type", "f32")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")
    expected = transformers.AutoModelForCausalLM.from_pretrained(source).state_dict()
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name].numpy(), err_msg=name)
    found = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in texts:
        assert found(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_the_merged_adapter_is_that_of_the_merged_checkpoint(llama, tmp_path):
    model, tokenizer = lcjax.from_pretrained(llama, dtype="float32")
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
    converted(llama, tmp_path / "cli.gguf", "--type", "f32", "--adapter", tmp_path / "adapter")
    _, merged, _ = weights.load_model_files(tmp_path / "merged", "float32")
    for name in ("api.gguf", "cli.gguf"):
        assert_same_bits(weights.load_gguf(tmp_path / name, "float32")[1], merged)
    _, before, _ = weights.load_model_files(llama, "float32")
    assert not np.array_equal(*(tree["layers"]["mlp"]["up_proj"]["weight"] for tree in (merged, before)))


def test_the_type_follows_the_model(llama, tmp_path):
    types = {}
    for dtype in ("float32", "bfloat16"):
        model, tokenizer = lcjax.from_pretrained(llama, dtype=dtype)
        lcjax.save_gguf(model, tmp_path / "m.gguf", tokenizer)
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
def test_rope_scaling_comes_back(tokenizer, tmp_path, kind):
    config = config_of(num_hidden_layers=1, rope_scaling=ROPES[kind])
    model = lcjax.Llama(config, random_params(config), tiny_settings())
    lcjax.save_gguf(model, tmp_path / "m.gguf", tokenizer)
    assert weights.open_model_files(tmp_path / "m.gguf").config.rope_scaling == ROPES[kind]


def tiny_settings():
    from tests.support.settings import model_settings

    return model_settings(64)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "mistral", "sliding_window": 20}, "llama models cannot express sliding_window=20"),
        (
            {"model_type": "qwen2", "sliding_window": 20, "own_values": (("use_sliding_window", True), ("max_window_layers", 0))},
            "qwen2 models cannot express sliding_window=20",
        ),
        ({"model_type": "qwen3", "attention_bias": True}, "qwen3 models cannot express attention_bias=true"),
        ({"model_type": "olmo2", "attention_bias": True}, "olmo2 models cannot express attention_bias=true"),
        (gemma("gemma2", tie_word_embeddings=False), "gemma2 models cannot express tie_word_embeddings=false"),
        (gemma("gemma2", query_pre_attn_scalar=256), "cannot express query_pre_attn_scalar=256 instead of 32"),
        (gemma("gemma2", attn_logit_softcapping=None), "cannot express attn_logit_softcapping=null"),
        (gemma("gemma3_text", final_logit_softcapping=30.0), "cannot express final_logit_softcapping=30.0"),
        (gemma("gemma3_text", layer_types=("full_attention",) * 2), "layer_types other than sliding_window_pattern says"),
        (gemma("gemma2", layer_types=("full_attention", "sliding_attention")), "cannot express layer_types other than"),
        (
            {"model_type": "smollm3", "own_values": (("no_rope_layer_interval", 2),)},
            "smollm3 models cannot express layers without RoPE other than every 4th",
        ),
        ({"rope_scaling": RopeScaling("dynamic", 2.0)}, "rope_type=dynamic"),
        ({"model_type": "qwen2", "rope_scaling": RopeScaling("llama3", 8.0)}, "rope_type=llama3"),
        ({"rope_scaling": RopeScaling("yarn", 2.0, beta_fast=16.0)}, "YaRN with beta_fast=16.0 instead of 32.0"),
        ({"rope_scaling": RopeScaling("yarn", 2.0, truncate=False)}, "YaRN with truncate=false"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"vocab_size": 300}, "the model's embedding has 300 rows"),
    ],
)  # fmt: skip
def test_what_the_format_cannot_express_is_refused_by_name(tokenizer, fields, said):
    with pytest.raises(InputError) as caught:
        weights.gguf_content(config_of(**fields), tokenizer, "f16", name="m")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_window_over_the_whole_context_is_no_window(tokenizer):
    config = config_of(model_type="mistral", sliding_window=128)
    keys = weights.gguf_content(config, tokenizer, "f16", name="m").header.kv_data[0]
    assert "llama.attention.sliding_window" not in keys


def test_large_values_are_refused(model_of, tmp_path, capsys):
    source = model_of(num_hidden_layers=1)
    config, params, _ = weights.load_model_files(source, "float32")
    params["embed_tokens"]["weight"] = params["embed_tokens"]["weight"].at[3, 5].set(-70_000.0)
    weights.save_checkpoint(source, params, config)
    assert run(source, tmp_path / "m.gguf") == 2
    assert "embed_tokens.weight has the value 70000.0, and f16 ends at 65504.0; use type bf16" in one_line(capsys)
    assert not any(tmp_path.iterdir())
    converted(source, tmp_path / "m.gguf", "--type", "bf16")


def one_line(capsys) -> str:
    *phases, line = capsys.readouterr().err.splitlines()
    assert all(phase.startswith("converting ") for phase in phases)
    assert line.startswith("error: ")
    return line


def test_a_file_is_replaced_only_if_asked(llama, tmp_path, capsys):
    path = tmp_path / "new" / "M.GGUF"
    converted(llama, path)
    before = path.read_bytes()
    capsys.readouterr()
    assert run(llama, path, "--type", "f32") == 2
    assert f"{path} exists; give another file or add --overwrite" in one_line(capsys)
    assert path.read_bytes() == before
    converted(path, path, "--type", "f32", "--overwrite")  # the source is read to its end before
    assert [file.name for file in path.parent.iterdir()] == ["M.GGUF"]
    assert_same_bits(weights.load_gguf(path, "float32")[1], weights.load_model_files(llama, "float32")[1])


@pytest.mark.parametrize(
    ("destination", "flags", "said"),
    [
        ("folder.gguf", (), "folder.gguf is a folder; give the name of a file"),
        ("file/m.gguf", (), "file is a file"),
        ("m.gguf", ("--dtype", "bfloat16"), "--dtype bfloat16 is for directories"),
        ("m.gguf", ("--max-shard-size", "1GB"), "--max-shard-size 1GB is for directories"),
        ("m.gguf", ("--type", "q5_k"), "--type"),
        ("out", ("--type", "f16"), "--type f16 is for .gguf files; for a directory use --dtype"),
    ],
)
def test_destinations_and_flags_that_do_not_fit(llama, tmp_path, capsys, destination, flags, said):
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "file").write_text("before")
    assert run(llama, tmp_path / destination, *flags, "--overwrite") == 2
    assert said in one_line(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.gguf"]


@contextlib.contextmanager
def files_limited_to(num_bytes: int):
    """A limit on the size of files makes the kernel refuse a write, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("num_bytes", [1000, 60_000])
def test_a_disk_that_fills_up(llama, tokenizer, tmp_path, num_bytes):
    """In the metadata, and among the tensors."""
    model, _ = lcjax.from_pretrained(llama, dtype="float32")
    (tmp_path / "m.gguf").write_text("before")
    with files_limited_to(num_bytes), pytest.raises(InputError, match="bytes are needed") as caught:
        lcjax.save_gguf(model, tmp_path / "m.gguf", tokenizer)
    assert f"{tmp_path} cannot be written" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("m.gguf", "before")]


def test_a_disk_that_is_too_small(llama, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert run(llama, tmp_path / "m.gguf") == 2
    assert "bytes are needed and 1,000 are free" in one_line(capsys)
    assert not any(tmp_path.iterdir())


def test_a_tensor_is_encoded_in_parts(tokenizer, tmp_path):
    """The peak is the largest tensor and a few MB, and rows that are interleaved come out right."""
    config = config_of(vocab_size=30_000, hidden_size=512, num_attention_heads=64, num_key_value_heads=32)
    content = weights.gguf_content(config, tokenizer, "q8_0", name="m")
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


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "a bad disk")])
def test_an_interrupted_write_leaves_no_trace(tokenizer, tmp_path, error):
    config = config_of()
    content = weights.gguf_content(config, tokenizer, "f16", name="m")
    asked = []

    def fetch(name):
        asked.append(name)
        if len(asked) == 5:
            raise error
        return np.zeros(name.shape, np.float32)

    with pytest.raises((KeyboardInterrupt, InputError)):
        weights.write_gguf(tmp_path / "m.gguf", content, fetch)
    assert not any(tmp_path.iterdir())
    assert len(asked) == 5
