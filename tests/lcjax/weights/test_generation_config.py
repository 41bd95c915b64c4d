"""generation_config.json and stop tokens, from every source to every destination."""

from __future__ import annotations

import json
import shutil

import pytest
import transformers
from tokenizers import pre_tokenizers

import lcjax
from lcjax import weights
from lcjax.convert.__main__ import main as convert
from lcjax.errors import InputError
from lcjax.generate import stop_ids
from tests.support import gguf_writing

# An unusual layout, with fields that only some libraries know.
TEXT = '{ "eos_token_id": [0, 2, 5],\r\n  "temperature": 0.70, "made up": "\N{SNOWMAN}" }'


@pytest.fixture
def source(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "source")
    (tmp_path / "source" / "generation_config.json").write_bytes(TEXT.encode())
    return tmp_path / "source"


def files_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.suffix != ".safetensors"}


def assert_survived(source, out):
    before, after = files_of(source), files_of(out)
    assert after.keys() - {"README.md"} == before.keys()  # the card of what was trained
    for name in before.keys() - {"config.json"}:
        assert after[name] == before[name], name
    loaded = transformers.GenerationConfig.from_pretrained(out)
    assert loaded.eos_token_id == [0, 2, 5]


def test_merging_an_adapter_preserves_every_file(source, tmp_path):
    model, tokenizer = lcjax.from_pretrained(source, dtype="float32")
    lcjax.save_merged(lcjax.get_peft_model(model, r=2), tmp_path / "out", tokenizer)
    assert_survived(source, tmp_path / "out")


def test_a_conversion_preserves_every_file(source, tmp_path):
    assert convert([str(source), str(tmp_path / "out")]) == 0
    assert_survived(source, tmp_path / "out")


def test_a_conversion_in_place_preserves_every_file(source, tmp_path):
    shutil.copytree(source, tmp_path / "out")
    assert convert([str(tmp_path / "out"), str(tmp_path / "out"), "--overwrite"]) == 0
    assert_survived(source, tmp_path / "out")


def test_full_finetuning_preserves_every_file(source, data_dir, tmp_path):
    from lcjax.train.__main__ import main

    flags = ["--model", source, "--data", data_dir, "--output-dir", tmp_path / "run", "--max-seq-length", 64]
    flags += ["--max-steps", 1, "--full-finetuning", "--dtype", "float32"]
    assert main([str(flag) for flag in flags]) == 0
    assert_survived(source, tmp_path / "run" / "model")


def test_files_of_a_replaced_model_are_removed(source, model_dir, tmp_path):
    (source / "chat_template.jinja").write_text("{{ messages }}")
    shutil.copytree(source, tmp_path / "out")
    assert convert([str(model_dir), str(tmp_path / "out"), "--overwrite"]) == 0
    assert files_of(tmp_path / "out").keys() == files_of(model_dir).keys()


@pytest.mark.parametrize("text", ["{", "[]", "\x00", '"text"', "[" * 100_000])
def test_a_broken_file_is_refused_before_weights_are_read(source, tmp_path, text, capsys):
    (source / "generation_config.json").write_text(text)
    with pytest.raises(InputError, match=r"generation_config.json is not a JSON object"):
        lcjax.from_pretrained(source)
    assert convert([str(source), str(tmp_path / "out")]) == 2
    assert "is not a JSON object" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("eos", [5, [5, 7]])
def test_the_tokens_of_config_json_stop(model_dir, tmp_path, eos):
    shutil.copytree(model_dir, tmp_path / "model")
    config = json.loads((model_dir / "config.json").read_text()) | {"eos_token_id": eos}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    tokenizer = weights.load_tokenizer(tmp_path / "model")
    own = weights.stop_ids(tokenizer.eos_token_id)
    stated = {eos} if isinstance(eos, int) else {*eos}
    assert stop_ids(tokenizer, tmp_path / "model") == own | stated
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [2, null, true, 3]}')
    assert stop_ids(tokenizer, tmp_path / "model") == own | stated | {2, 3}


LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<bos>", "<eos>", "<eot>", "<eom>", *LETTERS, "ab"]


def write_gguf(tmp_path, tiny_llama, ends, templates=()):
    def fill(writer):
        gguf_writing.add_model(writer, tiny_llama(vocab_size=len(TOKENS)))
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(TOKENS)
        writer.add_token_types([3] * 4 + [1] * (len(LETTERS) + 1))
        writer.add_token_merges(["a b"])
        for key, token in ends.items():
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)
        if templates:
            writer.add_chat_template(templates)

    return gguf_writing.write(tmp_path / "m.gguf", fill)


@pytest.mark.parametrize(
    ("ends", "stops"),
    [
        ({"bos": 0, "eos": 1}, 1),
        ({"bos": 0, "eos": 1, "eot": 2}, [1, 2]),
        ({"eos": 1, "eot": 2, "eom": 3}, [1, 2, 3]),
        ({"eos": 1, "eot": 1}, 1),
    ],
)
def test_every_end_of_a_gguf_stops_and_is_written(tiny_llama, tmp_path, ends, stops):
    path = write_gguf(tmp_path, tiny_llama, ends)
    expected = {stops} if isinstance(stops, int) else {*stops}
    assert stop_ids(weights.load_tokenizer(path), path) == expected
    assert convert([str(path), str(tmp_path / "out")]) == 0
    loaded = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (loaded.eos_token_id, loaded.bos_token_id) == (stops, ends.get("bos"))
    assert stop_ids(weights.load_tokenizer(tmp_path / "out"), tmp_path / "out") == expected


def test_an_end_outside_the_vocabulary_is_refused(tiny_llama, tmp_path):
    path = write_gguf(tmp_path, tiny_llama, {"eos": 1, "eot": 7000})
    with pytest.raises(InputError, match=f"tokenizer.ggml.eot_token_id=7000 of {len(TOKENS)} tokens"):
        weights.read_generation_config(path)


def test_all_chat_templates_of_a_gguf_are_loaded(tiny_llama, tmp_path):
    templates = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    path = write_gguf(tmp_path, tiny_llama, {"bos": 0, "eos": 1}, templates)
    assert convert([str(path), str(tmp_path / "out")]) == 0
    for tokenizer in (weights.load_tokenizer(path), weights.load_tokenizer(tmp_path / "out")):
        assert [tokenizer.get_chat_template(name) for name in (None, "tool_use")] == ["D", "T"]
