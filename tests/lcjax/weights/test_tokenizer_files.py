"""The tokenizer of a directory is that of tokenizer.json, for any class; its files are copied."""

from __future__ import annotations

import json

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer

from lcjax.errors import InputError
from lcjax.weights import load_tokenizer, save_tokenizer
from tests.support import tokenizer_pipelines as pipelines

TEXTS = [
    "ab", " ab", "  ab", "ab ab\n\nab", "", " ", "\n", "aé e\u0301 É ABC", "1a2 b,c", "<s>ab</s> ab", "日本🦙", "a" * 40 + " b",
]  # fmt: skip
LABELS = ["LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "PreTrainedTokenizerFast", None]


def assert_ids_of_file(tokenizer, directory):
    reference = Tokenizer.from_file(str(directory / "tokenizer.json"))
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == reference.encode(text).ids, text
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert plain == reference.encode(text, add_special_tokens=False).ids, text
        assert tokenizer.decode(plain) == reference.decode(plain, skip_special_tokens=False), text


@pytest.mark.parametrize("pre_tokenizer", pipelines.PRE_TOKENIZERS)
@pytest.mark.parametrize("normalizer", pipelines.NORMALIZERS)
def test_ids_are_those_of_the_file_under_every_label(tmp_path, normalizer, pre_tokenizer):
    for number, label in enumerate(LABELS):
        backend = pipelines.pipeline(normalizer, pre_tokenizer, bos=number % 2 == 0)
        directory = pipelines.write(tmp_path / str(number), backend, label, add_bos_token=True, legacy=True)
        assert_ids_of_file(load_tokenizer(directory), directory)


def test_no_space_is_added_before_a_text_unless_the_file_says_so(tmp_path):
    """transformers' AutoTokenizer gives wrong ids here."""
    directory = pipelines.write(tmp_path, pipelines.pipeline("replace"), "LlamaTokenizer")
    tokenizer = load_tokenizer(directory)
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab")["input_ids"]) == ["ab"]
    assert transformers.AutoTokenizer.from_pretrained(directory)("ab")["input_ids"] != tokenizer("ab")["input_ids"]


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path):
    backend = pipelines.pipeline("replace")
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    tokenizer = load_tokenizer(pipelines.write(tmp_path, backend, "LlamaTokenizer"))
    assert len(tokenizer.backend_tokenizer.encode("a" * 40).ids) == len(tokenizer("a" * 40)["input_ids"]) == 40


def test_tokens_that_only_the_config_names_are_added_after_the_file_s(tmp_path):
    added = {"content": "<extra>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    backend = pipelines.pipeline("replace")
    size = backend.get_vocab_size()
    directory = pipelines.write(tmp_path, backend, "LlamaTokenizer", added_tokens_decoder={str(size): added})
    tokenizer = load_tokenizer(directory)
    assert tokenizer("ab<extra>")["input_ids"][-1] == size
    assert tokenizer.decode([size], skip_special_tokens=True) == ""


@pytest.mark.parametrize(("label", "eos"), [("LlamaTokenizer", "</s>"), ("GPT2Tokenizer", None), (None, None)])
def test_tokens_without_a_name_have_their_class_s(tmp_path, label, eos):
    directory = pipelines.write(tmp_path, pipelines.pipeline(), label)
    stated = {"tokenizer_class": label} if label else {}
    (directory / "tokenizer_config.json").write_text(json.dumps(stated))
    assert load_tokenizer(directory).eos_token == eos


@pytest.mark.parametrize("label", LABELS)
def test_unchanged_files_are_copied_byte_for_byte(tmp_path, label):
    directory = pipelines.write(tmp_path / "in", pipelines.pipeline("replace", bos=True), label)
    (directory / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tools.jinja").write_bytes(b"{{ tools }}")
    (directory / "tokenizer.model").write_bytes(b"\x00kept")
    tokenizer = load_tokenizer(directory)
    tokenizer(["a", "ab"], padding=True, truncation=True, max_length=1) if tokenizer.pad_token else None
    (tmp_path / "out").mkdir()
    save_tokenizer(tokenizer, tmp_path / "out")
    files = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(
        path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    assert all((directory / path).read_bytes() == (tmp_path / "out" / path).read_bytes() for path in files)


def _new_template(tokenizer):
    tokenizer.chat_template = "{{ messages[0].content }}!"


def _new_token(tokenizer):
    tokenizer.add_tokens([AddedToken("<new>", special=True)])


def _new_pad(tokenizer):
    tokenizer.pad_token = "<unk>"


@pytest.mark.parametrize("change", [_new_template, _new_token, _new_pad])
def test_a_changed_tokenizer_is_saved_with_its_changes(tmp_path, change):
    directory = pipelines.write(tmp_path / "in", pipelines.pipeline("replace", bos=True), "LlamaTokenizer")
    tokenizer = load_tokenizer(directory)
    change(tokenizer)
    (tmp_path / "out").mkdir()
    save_tokenizer(tokenizer, tmp_path / "out")
    again = load_tokenizer(tmp_path / "out")
    for name in ("chat_template", "pad_token", "eos_token", "bos_token", "added_tokens_encoder"):
        assert getattr(again, name) == getattr(tokenizer, name), name
    for text in [*TEXTS, "ab<new>ab"]:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"], text
        saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        assert saved(text)["input_ids"] == tokenizer(text)["input_ids"], text


def test_a_tokenizer_whose_files_were_deleted_can_be_saved(tmp_path):
    directory = pipelines.write(tmp_path / "in", pipelines.pipeline("replace", bos=True), "LlamaTokenizer")
    tokenizer = load_tokenizer(directory)
    directory.rename(tmp_path / "elsewhere")
    (tmp_path / "out").mkdir()
    save_tokenizer(tokenizer, tmp_path / "out")
    assert_ids_of_file(load_tokenizer(tmp_path / "out"), tmp_path / "elsewhere")


@pytest.mark.parametrize("config", ["[]", "{", "\x00", '"text"', '{"extra_special_tokens": 7}'])
def test_a_broken_tokenizer_config_is_one_line(tmp_path, config):
    directory = pipelines.write(tmp_path, pipelines.pipeline(), None)
    (directory / "tokenizer_config.json").write_text(config)
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load_tokenizer(directory)
    assert "\n" not in str(caught.value)


def test_an_invalid_class_name_is_ignored(tmp_path):
    directory = pipelines.write(tmp_path, pipelines.pipeline(), None)
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": 3}')
    assert load_tokenizer(directory).eos_token is None
