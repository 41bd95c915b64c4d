"""Small tokenizers of the kinds of published models, and difficult texts."""

from __future__ import annotations

import functools
import random

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
FRAGMENTS = [
    *"abcdeABxyz",
    *"aaa111   ",
    *" \n\t\r'\".,!?-_/",
    *("the ", "The boat", " seven", "river's", "DON'T", "'S", "'ll ", "12345", "3.14", "2024", "x" * 9, " " * 6),
    *(
        "\n\n",
        "\r\n",
        " \n ",
        "日本語",
        "東京、",
        "です。",
        "한국어",
        "привет ",
        "МИР",
        "e\u0301",
        "é",
        "ß",
        "ss",
        "ſ",
        "ﬆ",
        "İ",
    ),
    *("①", "Ａ，", "\u00a0", "\u2003", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\ufe0f"),
    *("\u0301", "ก็", "हिन्दी ", "\u0600", "▁", "▁a", "\x00", "\x85", "\ufffd"),
    *("</s>", "<|end|>", "<mask>", " <mask> ", "foo bar", "foo", "word", "<s>"),
]


def text(draw: random.Random, fragments: int) -> str:
    """Returns mixed fragments that include runs of one kind."""
    parts: list[str] = []
    while len(parts) < fragments:
        parts += [draw.choice(FRAGMENTS)] * (draw.choice([1, 1, 1, 1, 7]))
    return "".join(parts)


def _trained(model, trainer, pre_tokenizer=None, normalizer=None, template=None, added=(), more=()) -> Tokenizer:
    tokenizer = Tokenizer(model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    draw = random.Random(0)
    tokenizer.train_from_iterator(
        [*(text(draw, 200) for _ in range(40)), *["the boat of the seven rivers "] * 5, *more], trainer
    )
    tokenizer.add_special_tokens(["<s>", "</s>", "<|end|>"])
    tokenizer.add_tokens(list(added))
    if template is not None:
        pairs = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=pairs)
    return tokenizer


def _bpe(*arguments, byte_level=False, suffix=None, **options) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    special = ["<unk>"]
    if options.pop("byte_fallback", False):
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        model = models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    else:
        model = models.BPE(unk_token="<unk>", fuse_unk=True, **({"end_of_word_suffix": suffix} if suffix else {}))
    extra = {"end_of_word_suffix": suffix} if suffix else {}
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=alphabet,
        limit_alphabet=300,
        show_progress=False,
        **extra,
    )
    return _trained(model, trainer, *arguments, **options)


def _split(pattern: str, *others, prefix=False):
    levels = [pre_tokenizers.Split(Regex(each), "isolated") for each in (*others, pattern)]
    return pre_tokenizers.Sequence([*levels, pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)])


def _llama2(pre_tokenizer, normalizer) -> Tokenizer:
    """Returns a tokenizer with spaces only at the start of tokens, as in SentencePiece.

    It does not split the text.
    """
    tokenizer = _bpe(pre_tokenizers.Metaspace(), byte_fallback=True, template="<s> $A")
    tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizer, normalizer
    return tokenizer


def _unigram(*arguments, **options) -> Tokenizer:
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    return _trained(models.Unigram(), trainer, *arguments, **options)


def _word_piece() -> Tokenizer:
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]"], show_progress=False)
    return _trained(
        models.WordPiece(unk_token="[UNK]"),
        trainer,
        pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(lowercase=True),
        "<s> $A </s>",
    )


def _word_level() -> Tokenizer:
    trainer = trainers.WordLevelTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    return _trained(models.WordLevel(unk_token="<unk>"), trainer, pre_tokenizers.Whitespace())


_ADDED = [
    AddedToken("<mask>", lstrip=True, rstrip=False, normalized=False),
    AddedToken("foo bar", normalized=True),
    AddedToken("word", single_word=True, normalized=False),
]
_SPACES = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
_T5 = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Lowercase()])
_BUILDERS = {
    "byte-level": lambda: _bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), byte_level=True, template="<s> $A"),
    "byte-level with a prefix": lambda: _bpe(pre_tokenizers.ByteLevel(add_prefix_space=True), byte_level=True),
    "llama 3": lambda: _bpe(_split(LLAMA3), byte_level=True, template="<s> $A"),
    "qwen 2": lambda: _bpe(_split(LLAMA3.replace("{1,3}", "")), normalizers.NFC(), byte_level=True),
    "gpt-4o": lambda: _bpe(_split(GPT4O), byte_level=True),
    "deepseek": lambda: _bpe(_split(DEEPSEEK, r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+"), byte_level=True),
    "digits": lambda: _bpe(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        byte_level=True,
        added=_ADDED,
    ),
    "contiguous digits": lambda: _bpe(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.Punctuation("contiguous")])
    ),
    "gemma": lambda: _bpe(
        pre_tokenizers.Split(" ", "merged_with_previous"), normalizers.Replace(" ", "▁"), byte_fallback=True
    ),
    "split before spaces": lambda: _bpe(pre_tokenizers.Split(" ", "merged_with_next"), added=_ADDED),
    "llama 2": lambda: _llama2(None, _SPACES),
    "llama 2 by metaspace": lambda: _llama2(pre_tokenizers.Metaspace(prepend_scheme="first", split=False), None),
    "metaspace": lambda: _bpe(pre_tokenizers.Metaspace(), added=_ADDED),
    "metaspace without a prefix": lambda: _bpe(pre_tokenizers.Metaspace(prepend_scheme="never")),
    "no pre-tokenizer": lambda: _bpe(),
    "clip": lambda: _bpe(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(r"'s|'t|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True)]
        ),
        normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]),
        suffix="</w>",
    ),
    "unigram": lambda: _unigram(pre_tokenizers.Metaspace(), _T5, "$A </s>"),
    "unigram of words": lambda: _unigram(
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]), added=_ADDED
    ),
    "bert": _word_piece,
    "words": _word_level,
    # Kinds for which a text cannot be split, or for which this is unknown.
    "unigram of one word": lambda: _unigram(pre_tokenizers.Metaspace(split=False)),
    "quotations": lambda: _bpe(_split(r'"[^"]*"|\w+|\s+|.'), byte_level=True, more=['"word and word and"'] * 99),
    "look-behind": lambda: _bpe(_split(r"(?<=[a\s])\w|\w+|\s+|[^\w\s]"), byte_level=True),
    "groups of digits from the right": lambda: _bpe(_split(r"\p{N}{1,3}(?=(?:\p{N}{3})*$)|[^\p{N}]+"), byte_level=True),
    "scripts": lambda: _bpe(pre_tokenizers.UnicodeScripts()),
}
UNCUT = ("unigram of one word", "quotations", "look-behind", "groups of digits from the right", "scripts")
KINDS = tuple(_BUILDERS)


@functools.cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """Returns the tokenizer of a kind. Tests must not change it."""
    return PreTrainedTokenizerFast(tokenizer_object=_BUILDERS[kind](), bos_token="<s>", eos_token="</s>")
