import contextlib
import json
import os
import re
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lcjax.errors import InputError
from lcjax.weights import load_tokenizer
from tests.support.gguf_writing import add_model, write

EDGE_CASES = [
    "",
    " ",
    "  ",
    "\n",
    "\r\n\r\n\t x",
    "a  b   c    d\n    e\n\n\n  f ",
    "1 12 123 1234 12345678901234567890 3.14 1,000,000 0x7f ½ ² ٣ 五",
    "  1   2\n    3\t4",
    "don't DON'T we'll I've it's 'S 'LL ʼs",
    "naïve façade Straße ŒUVRE ǅ ﬁ e\u0301 \u0301 ẞ",
    "你好,世界 こんにちは 안녕하세요 नमस्ते مرحبا שלום ไทย",
    "🙂👩‍👩‍👧‍👦🇩🇪\u200b\u00a0\u2003\ufeff\u0000\u0085\u2028",
    "snake_case camelCase __dunder__ a->b a<=b !== // /* */ #! $PATH `x` ~~~ \\n \\\\",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><s></s> <s> x<s>y <|im_start",
    "x" * 500 + " " * 100 + "\n" * 50,
]


@pytest.fixture(scope="session")
def python_source() -> list[str]:
    """A quarter of a megabyte and more of the standard library."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(os.__file__).parent.glob("[ab]*.py"))]
    assert sum(map(len, texts)) > 2**18
    return texts


def by_transformers(path: Path):
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def assert_same_tokenizers(found, expected, texts):
    for text in texts:
        assert found(text)["input_ids"] == expected(text)["input_ids"], text[:100]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "chat_template", "all_special_ids"):
        assert getattr(found, name) == getattr(expected, name), name
    assert len(found) == len(expected)


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return load_tokenizer(smollm2)


def test_smollm2_equals_transformers(tokenizer, smollm2, python_source):
    expected = by_transformers(smollm2)
    # transformers omits the digits; the model's tokenizer.json and llama.cpp have them.
    words = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    expected.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    assert_same_tokenizers(tokenizer, expected, python_source + EDGE_CASES)


def test_every_digit_is_a_token_of_smollm2(tokenizer):
    """Also after several spaces, of which the last would otherwise join the digit."""
    assert tokenizer.tokenize("x   12") == ["x", "ĠĠĠ", "1", "2"]


def test_smollm2_decodes_what_it_encodes(tokenizer, python_source):
    for text in python_source[:20] + EDGE_CASES:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_smollm2_chat_template(tokenizer):
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n")


@pytest.mark.parametrize("with_config", [False, True])
def test_smollm2_reloads_from_what_it_saves(tokenizer, tmp_path, with_config, python_source):
    tokenizer.save_pretrained(tmp_path)
    if with_config:  # AutoTokenizer then selects a class by model_type
        (tmp_path / "config.json").write_text(
            json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
        )
    texts = python_source[:20] + EDGE_CASES
    assert_same_tokenizers(transformers.AutoTokenizer.from_pretrained(tmp_path), tokenizer, texts)
    assert_same_tokenizers(load_tokenizer(tmp_path), tokenizer, texts)


# transformers adds <|endoftext|> to a byte-level vocabulary that lacks it.
SPECIAL = ["<|endoftext|>", "<s>", "</s>"]


@pytest.fixture(scope="module")
def byte_level_vocabulary(python_source) -> tuple[list[str], list[str]]:
    """Learns tokens and merges across word boundaries, so that every pattern has an effect."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "".join(python_source[:3] + EDGE_CASES)
    pieces = [text[start : start + 30] for start in range(0, len(text), 30)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(pieces, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [" ".join(merge) for merge in model["merges"]]


def write_tokenizer(path, llama, model, tokens, *, pre=None, merges=None, scores=None, types=None, **flags) -> Path:
    def fill(writer):
        add_model(writer, llama)
        writer.add_tokenizer_model(model)
        writer.add_token_list(tokens)
        writer.add_token_types(types or [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
        if pre:
            writer.add_tokenizer_pre(pre)
        if merges:
            writer.add_token_merges(merges)
        if scores:
            writer.add_token_scores(scores)
        for key, token in (("unknown", 0), ("bos", 1), ("eos", 2)):
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)
        for key, value in flags.items():
            writer.add_bool(f"tokenizer.ggml.{key}", value)

    return write(path, fill)


@pytest.mark.parametrize("flags", [{"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}])
@pytest.mark.parametrize("pre", ["gpt-2", "default", "llama-bpe", "qwen2", "dbrx", "tekken", "gpt-4o"])
def test_byte_level_tokenizers_equal_transformers(
    tiny_llama, tmp_path, python_source, byte_level_vocabulary, pre, flags
):
    tokens, merges = byte_level_vocabulary
    path = write_tokenizer(tmp_path / "t.gguf", tiny_llama(), "gpt2", tokens, pre=pre, merges=merges, **flags)
    found, expected = load_tokenizer(path), by_transformers(path)
    if pre in ("llama-bpe", "tekken"):
        # transformers omits this; the models' tokenizer.json and llama.cpp have it.
        expected.backend_tokenizer.model.ignore_merges = True
    assert_same_tokenizers(found, expected, python_source[3:8] + EDGE_CASES)
    found.save_pretrained(tmp_path / "saved")
    reloaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert_same_tokenizers(reloaded, found, EDGE_CASES)
    assert (found("x")["input_ids"][0] == 1) == flags["add_bos_token"]
    assert (found("x")["input_ids"][-1] == 2) == flags.get("add_eos_token", False)


def test_patterns_of_words_differ():
    """The test above would not detect swapped patterns if they split its texts equally."""
    from tokenizers import Regex

    from lcjax.weights.gguf.words import LLAMA3, QWEN2

    splits = {
        str([pre_tokenizers.Split(Regex(words), "isolated").pre_tokenize_str(text) for text in EDGE_CASES])
        for words in (LLAMA3, QWEN2)
    }
    assert len(splits) == 2


def test_llama3_prefers_whole_words_and_adds_bos(tiny_llama, tmp_path):
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "abc"]
    ids = {}
    for pre in ("llama-bpe", "gpt-2"):
        path = write_tokenizer(tmp_path / f"{pre}.gguf", tiny_llama(), "gpt2", tokens, pre=pre, merges=["a b"])
        ids[pre] = load_tokenizer(path)("abc")["input_ids"]
    assert ids["llama-bpe"] == [1, tokens.index("abc")]
    assert ids["gpt-2"] == [tokens.index("ab"), tokens.index("c")]


def sentence_piece_vocabulary(texts) -> tuple[list[str], list[float], list[int]]:
    """Returns tokens, scores and types of a SentencePiece vocabulary learned from the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=1200, limit_alphabet=80, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = tokenizer.get_vocab()
    pieces = sorted(vocabulary, key=vocabulary.get)
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", *SPECIAL[1:], *byte_tokens, *pieces]
    scores = [0.0] * (len(tokens) - len(pieces)) + [-float(rank) for rank in range(len(pieces))]
    types = [2, 3, 3] + [6] * 256 + [1] * len(pieces)
    return tokens, scores, types


def test_sentence_piece_tokenizer_equals_transformers(tiny_llama, tmp_path, python_source):
    tokens, scores, types = sentence_piece_vocabulary(python_source[:5])
    path = write_tokenizer(tmp_path / "t.gguf", tiny_llama(), "llama", tokens, scores=scores, types=types)
    found = load_tokenizer(path)
    assert_same_tokenizers(found, by_transformers(path), python_source[5:12] + EDGE_CASES)
    for text in python_source[5:8] + [text for text in EDGE_CASES if "<s>" not in text and not text.startswith(" ")]:
        assert found.decode(found(text)["input_ids"], skip_special_tokens=True) == text


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece_prefix(tiny_llama, tmp_path, prefix):
    tokens = [*SPECIAL, "▁", "a", "▁a"]
    types = [2, 3, 3, 1, 1, 1]
    path = write_tokenizer(
        tmp_path / "t.gguf",
        tiny_llama(),
        "llama",
        tokens,
        scores=[0.0] * 5 + [-1.0],
        types=types,
        add_space_prefix=prefix,
    )
    tokenizer = load_tokenizer(path)
    assert tokenizer("a")["input_ids"] == [1, tokens.index("▁a" if prefix else "a")]
    assert tokenizer.decode([tokens.index("a")]) == "a"


def test_user_defined_tokens_stay_whole_and_are_not_special(tiny_llama, tmp_path):
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "<think>", "<｜end｜>"]
    types = [3] * 3 + [1] * (len(tokens) - 5) + [4, 3]
    path = write_tokenizer(tmp_path / "t.gguf", tiny_llama(), "gpt2", tokens, merges=["a b"], types=types)
    tokenizer = load_tokenizer(path)
    ids = tokenizer("x<think>y<｜end｜>")["input_ids"]
    assert ids == [tokens.index(token) for token in ("x", "<think>", "y", "<｜end｜>")]
    assert tokenizer.decode(ids) == "x<think>y<｜end｜>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "x<think>y"


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        ("tokenizer.ggml.model='t5'", {"model": "t5"}),
        ("tokenizer.ggml.pre='viking'; supported are gpt-2, default, smollm", {"pre": "viking"}),
        ("lacks tokenizer.ggml.merges", {"merges": None}),
        ("the merge of 'no' and 'such' is not in the vocabulary", {"merges": ["no such"]}),
        (
            "tokenizer.ggml.bos_token_id=1 of 1 tokens",
            {"model": "llama", "tokens": ["a"], "types": [1], "merges": None, "scores": [0.0]},
        ),
        ("has 1 tokenizer.ggml.scores for 6 tokens", {"model": "llama", "merges": None, "scores": [0.0]}),
        ("lacks tokenizer.ggml.merges and tokenizer.ggml.scores", {"model": "llama", "merges": None}),
        ("has no vocabulary", {"model": "llama", "tokens": []}),
    ],
)
def test_vocabulary_that_is_not_supported(tiny_llama, tmp_path, fault, options):
    arguments = {"model": "gpt2", "tokens": [*SPECIAL, "a", "b", "ab"], "merges": ["a b"]} | options
    path = write_tokenizer(tmp_path / "t.gguf", tiny_llama(), **arguments)
    with pytest.raises(InputError) as caught:
        load_tokenizer(path)
    assert fault in str(caught.value)
    assert re.search("[;:] (load|use|convert|download) ", str(caught.value))
    assert "\n" not in str(caught.value)


def test_directory_without_a_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match="has no tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"version": "1.0"}'])
def test_corrupt_tokenizer_in_a_directory(tokenizer, tmp_path, content):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_code_in_the_directory_never_runs(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    marker = tmp_path / "executed"
    (tmp_path / "tokenization_poison.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["tokenization_poison.Poison", "tokenization_poison.Poison"]}
    for tokenizer_class in (config["tokenizer_class"], "Poison"):
        config["tokenizer_class"] = tokenizer_class
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        with contextlib.suppress(InputError):
            load_tokenizer(tmp_path)
        assert not marker.exists()
