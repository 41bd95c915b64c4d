"""Tokenizers in GGUF files that lcjax writes: the same ids after reading back, or a refusal."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path

import pytest
import transformers
from gguf import GGUFReader, GGUFWriter, TokenType
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lcjax.errors import InputError
from lcjax.weights import load_tokenizer
from lcjax.weights.gguf.vocabulary import add_tokenizer
from lcjax.weights.gguf.words import PRE_TYPES, TEKKEN, pre_type
from tests.support import gguf_writing
from tests.support.tokenizers_of_all_kinds import LLAMA3, text, tokenizer_of

WRITTEN = {
    "byte-level": "gpt-2",
    "digits": "smollm",
    "llama 3": "dbrx",
    "qwen 2": "qwen2",
    "gpt-4o": "gpt-4o",
    "llama 2": None,
    "llama 2 by metaspace": None,
    "gemma": None,
}
REFUSED = {
    "byte-level with a prefix": '"add_prefix_space": true',
    "deepseek": "with ignore_merges=False is none of gpt-2,",
    "metaspace": "neither byte-level nor has it a token for every byte",
    "clip": "only BPE without marks on words",
    "llama 2": "the character NUL",
    "unigram": "its model is 'Unigram'",
    "bert": "its model is 'WordPiece'",
}


def without(each: str, *fragments: str) -> str:
    for fragment in fragments:
        each = each.replace(fragment, "")
    return each


def texts(kind: str) -> list[str]:
    """Returns difficult texts, of which GGUF can say how they are split.

    It has no place for Qwen's NFC. In a file of SentencePiece's kind, whether there is a space
    after a special token, or a second one before a text that begins with one, depends on the
    reader.
    """
    draw = random.Random(1)
    found = [text(draw, 60) for _ in range(60)]
    if kind == "qwen 2":
        return [unicodedata.normalize("NFC", each) for each in found]
    if WRITTEN[kind] is None:
        return [without(each, "<s>", "</s>", "<|end|>").lstrip(" ▁") for each in found]
    # GGUF's tokens neither absorb spaces nor ask for the ends of a word.
    return [without(each, "<mask>", "word") for each in found]


def without_nul(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Returns the tokenizer with other names for tokens with NUL, and without their merges."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model = parts["model"]
    model["vocab"] = {f"unused{i}" if "\0" in token else token: i for token, i in model["vocab"].items()}
    model["merges"] = [pair for pair in model["merges"] if "\0" not in "".join(pair)]
    backend = Tokenizer.from_str(json.dumps(parts))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def tokenizer_for(kind: str) -> PreTrainedTokenizerFast:
    return tokenizer_of(kind) if WRITTEN[kind] is not None else without_nul(tokenizer_of(kind))


def written(path: Path, tokenizer, vocab_size: int | None = None, ends=()) -> Path:
    writer = GGUFWriter(path, "llama")
    note = add_tokenizer(writer, tokenizer, vocab_size or len(tokenizer), ends)
    assert note is None
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def metadata(path: Path) -> dict:
    return {key: field.contents() for key, field in GGUFReader(path).fields.items() if key.startswith("tokenizer.")}


@pytest.mark.parametrize("kind", WRITTEN)
def test_the_same_ids_come_back(tmp_path, kind):
    tokenizer = tokenizer_for(kind)
    path = written(tmp_path / "t.gguf", tokenizer, vocab_size=len(tokenizer) + 3)
    found = load_tokenizer(path)
    for each in texts(kind):
        ids = tokenizer(each)["input_ids"]
        assert found(each)["input_ids"] == ids, each
        plain = found.decode(ids, skip_special_tokens=True)
        assert plain == without(each, "<s>", "</s>", "<|end|>").replace("▁", " " if WRITTEN[kind] is None else "▁"), (
            each
        )
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert getattr(found, name) == getattr(tokenizer, name), name
    said = metadata(path)
    assert said.get("tokenizer.ggml.pre") == WRITTEN[kind]
    assert said["tokenizer.ggml.model"] == ("llama" if WRITTEN[kind] is None else "gpt2")
    tokens, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    count = len(tokenizer)
    assert tokens[count:] == [f"[PAD{count + i}]" for i in range(3)]
    assert types[count:] == [TokenType.UNUSED] * 3
    assert types[tokens.index("<|end|>")] == TokenType.CONTROL
    if kind == "digits":
        assert types[tokens.index("foo bar")] == TokenType.USER_DEFINED
    again = written(tmp_path / "again.gguf", found)
    assert {**metadata(again), "tokenizer.ggml.token_type": None} == {**said, "tokenizer.ggml.token_type": None}


@pytest.mark.parametrize("kind", ["llama 3", "qwen 2", "gpt-4o", "llama 2"])
def test_transformers_reads_the_same_ids(tiny_llama, tmp_path, kind):
    tokenizer = tokenizer_for(kind)
    model = tiny_llama(vocab_size=len(tokenizer), num_hidden_layers=1)

    def fill(writer):
        gguf_writing.add_model(writer, model)
        add_tokenizer(writer, tokenizer, len(tokenizer), ())

    gguf_writing.write(tmp_path / "t.gguf", fill)
    found = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="t.gguf")
    for each in texts(kind):
        assert found(each)["input_ids"] == tokenizer(each)["input_ids"], each


@pytest.mark.parametrize("kind", REFUSED)
def test_other_tokenizers_are_refused(kind):
    with pytest.raises(InputError, match="cannot be expressed in GGUF") as caught:
        add_tokenizer(GGUFWriter(None, "llama"), tokenizer_of(kind), 2000, ())
    assert REFUSED[kind] in str(caught.value)
    assert "\n" not in str(caught.value)


def byte_level(words, *, whole=False, template=None, vocabulary=None) -> PreTrainedTokenizerFast:
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "abc"]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [("a", "b")], ignore_merges=whole))
    backend.pre_tokenizer = words
    backend.add_special_tokens(["<s>", "</s>", *(vocabulary or [])])
    if template is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def split(pattern: str, behavior="isolated"):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False, trim_offsets=False),
        ]
    )


@pytest.mark.parametrize(
    ("pattern", "whole", "name"), [(LLAMA3, True, "llama-bpe"), (LLAMA3, False, "dbrx"), (TEKKEN, True, "tekken")]
)
def test_whole_words_decide_the_name(tmp_path, pattern, whole, name):
    path = written(tmp_path / "t.gguf", byte_level(split(pattern), whole=whole))
    assert metadata(path)["tokenizer.ggml.pre"] == name
    # "abc" is a token that no merge produces.
    assert load_tokenizer(path).convert_ids_to_tokens(load_tokenizer(path)("abc")["input_ids"]) == (
        ["abc"] if whole else ["ab", "c"]
    )


@pytest.mark.parametrize(
    "words",
    [split(LLAMA3.replace("{1,3}", "{1,4}")), split(LLAMA3, "removed"), split(r"(a+)+$"), pre_tokenizers.Whitespace()],
)
def test_a_pattern_that_differs_is_not_mistaken_for_a_known_one(words):
    tokenizer = byte_level(words)
    with pytest.raises(InputError, match="cannot be expressed in GGUF"):
        add_tokenizer(GGUFWriter(None, "llama"), tokenizer, 300, ())


def test_every_name_in_the_table_is_found_by_its_own_pipeline():
    for name, words in PRE_TYPES.items():
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = words.pre_tokenizer()
        found = pre_type(json.loads(backend.to_str())["pre_tokenizer"], whole=words.whole)
        assert PRE_TYPES[found or ""] == words, name
    # The tokenizer of gpt-oss ignores merges, and llama.cpp's converter gives it the same name.
    backend.pre_tokenizer = PRE_TYPES["gpt-4o"].pre_tokenizer()
    assert pre_type(json.loads(backend.to_str())["pre_tokenizer"], whole=True) == "gpt-4o"


@pytest.mark.parametrize(
    ("template", "flags"),
    [("$A", (False, False)), ("<s> $A", (True, False)), ("<s> $A </s>", (True, True)), ("$A </s>", (False, True))],
)
def test_tokens_around_a_text(tmp_path, template, flags):
    tokenizer = byte_level(split(LLAMA3), template=template)
    path = written(tmp_path / "t.gguf", tokenizer)
    said = metadata(path)
    assert (said["tokenizer.ggml.add_bos_token"], said["tokenizer.ggml.add_eos_token"]) == flags
    assert load_tokenizer(path)("ab")["input_ids"] == tokenizer("ab")["input_ids"]


def test_other_tokens_around_a_text_are_refused():
    tokenizer = byte_level(split(LLAMA3), template="<s> </s> $A")
    with pytest.raises(InputError, match=r"it puts the tokens \[0, 1\] before a text"):
        add_tokenizer(GGUFWriter(None, "llama"), tokenizer, 300, ())


def test_ends_of_a_text_have_three_places(tmp_path):
    names = ["<|eom_id|>", "<|eot_id|>", "<a>", "<b>"]
    tokenizer = byte_level(split(LLAMA3), vocabulary=names)
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True))

    def slots(*ends):
        said = metadata(written(tmp_path / "t.gguf", tokenizer, ends=[ids.get(end, end) for end in ends]))
        return {key[15:18]: said[key] for key in said if key.endswith(("eos_token_id", "eot_token_id", "eom_token_id"))}

    eom, eot = ids["<|eom_id|>"], ids["<|eot_id|>"]
    assert slots() == {"eos": 1}
    assert slots(1, "<|eom_id|>", "<|eot_id|>") == {"eos": 1, "eot": eot, "eom": eom}
    assert slots("<|eom_id|>") == {"eos": 1, "eom": eom}
    assert slots("<a>", 1, "<b>") == {"eos": 1, "eot": ids["<a>"], "eom": ids["<b>"]}
    note = add_tokenizer(GGUFWriter(None, "llama"), tokenizer, 300, list(ids.values()))
    assert note is not None
    assert "<b>, <|eom_id|> end" in note


@pytest.mark.parametrize("template", [None, "x", {"default": "x", "tool_use": "y", "rag": "z"}, {"rag": "z"}])
def test_chat_templates(tmp_path, template):
    tokenizer = byte_level(split(LLAMA3))
    tokenizer.chat_template = template
    assert load_tokenizer(written(tmp_path / "t.gguf", tokenizer)).chat_template == template


def test_names_of_unused_rows_are_new(tmp_path):
    tokenizer = byte_level(split(LLAMA3), vocabulary=[AddedToken("[PAD261]", special=True)])
    assert len(tokenizer) == 261
    tokens = metadata(written(tmp_path / "t.gguf", tokenizer, vocab_size=262))["tokenizer.ggml.tokens"]
    assert tokens[-1] == "[PAD261]_"
    assert len(set(tokens)) == 262


def test_scores_follow_the_merges(tmp_path):
    """llama.cpp joins the neighbors with the best score; it does not read the merges."""
    said = metadata(written(tmp_path / "t.gguf", tokenizer_for("llama 2")))
    scores = dict(zip(said["tokenizer.ggml.tokens"], said["tokenizer.ggml.scores"], strict=True))
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(said["tokenizer.ggml.merges"]):
        ranks.setdefault(merge.replace(" ", ""), rank)
    assert len(ranks) > 100
    assert all(scores[token] == -rank for token, rank in ranks.items())
    assert {
        said["tokenizer.ggml.token_type"][said["tokenizer.ggml.tokens"].index(f"<0x{i:02X}>")] for i in range(256)
    } == {TokenType.BYTE}
