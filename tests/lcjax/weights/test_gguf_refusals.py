"""GGUF files that are not written: what the format cannot express, and places that are no good."""

import contextlib
import errno
import resource
import shutil

import numpy as np
import pytest

import lcjax
from lcjax import weights
from lcjax.config import RopeScaling
from lcjax.errors import InputError
from tests.support.gguf_models import assert_same_bits, config_of, converted, gemma, run
from tests.support.settings import model_settings
from tests.support.tiny_llama import random_params


@pytest.fixture(scope="module")
def small_model():
    config = config_of(num_hidden_layers=1)
    return lcjax.Llama(config, random_params(config), model_settings(64))


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
        ({"rope_scaling": RopeScaling("longrope", 2.0, short_factor=(1.0,) * 16, long_factor=(1.0,) * 16)}, "rope_type=longrope"),
        ({"model_type": "qwen2", "rope_scaling": RopeScaling("llama3", 8.0)}, "rope_type=llama3"),
        ({"rope_scaling": RopeScaling("yarn", 2.0, beta_fast=16.0)}, "YaRN with beta_fast=16.0 instead of 32.0"),
        ({"rope_scaling": RopeScaling("yarn", 2.0, truncate=False)}, "YaRN with truncate=false"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"vocab_size": 300}, "the model's embedding has 300 rows"),
    ],
)  # fmt: skip
def test_what_the_format_cannot_express_is_refused_by_name(small_tokenizer, fields, said):
    with pytest.raises(InputError) as caught:
        weights.gguf_content(config_of(**fields), small_tokenizer, "f16", name="m")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_window_over_the_whole_context_is_no_window(small_tokenizer):
    config = config_of(model_type="mistral", sliding_window=128)
    keys = weights.gguf_content(config, small_tokenizer, "f16", name="m").header.kv_data[0]
    assert "llama.attention.sliding_window" not in keys


def test_large_values_are_refused(small_model_of, tmp_path, capsys):
    source = small_model_of(num_hidden_layers=1)
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


def test_a_file_is_replaced_only_if_asked(small_llama, tmp_path, capsys):
    path = tmp_path / "new" / "M.GGUF"
    converted(small_llama, path)
    before = path.read_bytes()
    capsys.readouterr()
    assert run(small_llama, path, "--type", "f32") == 2
    assert f"{path} exists; give another file or add --overwrite" in one_line(capsys)
    assert path.read_bytes() == before
    converted(path, path, "--type", "f32", "--overwrite")  # the source is read to its end before
    assert [file.name for file in path.parent.iterdir()] == ["M.GGUF"]
    assert_same_bits(weights.load_gguf(path, "float32")[1], weights.load_model_files(small_llama, "float32")[1])


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
def test_destinations_and_flags_that_do_not_fit(small_llama, tmp_path, capsys, destination, flags, said):
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "file").write_text("before")
    assert run(small_llama, tmp_path / destination, *flags, "--overwrite") == 2
    assert said in one_line(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.gguf"]


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("before.gguf", {}, "before.gguf exists; give another file, or overwrite=True"),
        ("m.txt", {}, "m.txt is not the name of a GGUF file; end it with .gguf"),
        ("folder.gguf", {"overwrite": True}, "folder.gguf is a folder; give the name of a file"),
        (f"{'x' * 300}.gguf", {}, "cannot be written (File name too long); give another file"),
        ("m.gguf", {"tokenizer": None}, "m.gguf needs the model's tokenizer; give the one that from_pretrained returned"),
    ],
)  # fmt: skip
def test_python_is_as_careful_as_the_command(small_model, small_tokenizer, tmp_path, name, given, said):
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "before.gguf").write_text("before")
    with pytest.raises(InputError) as caught:
        lcjax.save_gguf(small_model, tmp_path / name, **{"tokenizer": small_tokenizer, **given})
    assert str(caught.value).endswith(said)
    assert (tmp_path / "before.gguf").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before.gguf", "folder.gguf"]


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
def test_a_disk_that_fills_up(small_llama, small_tokenizer, tmp_path, num_bytes):
    """In the metadata, and among the tensors."""
    model, _ = lcjax.from_pretrained(small_llama, dtype="float32")
    (tmp_path / "m.gguf").write_text("before")
    with files_limited_to(num_bytes), pytest.raises(InputError, match="bytes are needed") as caught:
        lcjax.save_gguf(model, tmp_path / "m.gguf", small_tokenizer, overwrite=True)
    assert f"{tmp_path} cannot be written" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("m.gguf", "before")]


def test_a_disk_that_is_too_small(small_llama, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert run(small_llama, tmp_path / "m.gguf") == 2
    assert "bytes are needed and 1,000 are free" in one_line(capsys)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "a bad disk")])
def test_an_interrupted_write_leaves_no_trace(small_tokenizer, tmp_path, error):
    config = config_of()
    content = weights.gguf_content(config, small_tokenizer, "f16", name="m")
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
