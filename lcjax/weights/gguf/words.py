"""How byte-level tokenizers split a text into words: the values of `tokenizer.ggml.pre`.

A GGUF file has only the name of the pattern. Both the reader and the writer use this table.

Source: llama.cpp, src/llama-vocab.cpp; the tokenizer.json of the models.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tokenizers import Regex, pre_tokenizers

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_TAIL}"
QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_TAIL}"

# Words that begin with capital letters, and words that end with small ones.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}{_CASED_TAIL}"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}{_CASED_TAIL}"
)


@dataclasses.dataclass(frozen=True)
class Words:
    """A way to split a text.

    Attributes:
      pattern: of one word; None for GPT-2's, which the byte-level pre-tokenizer has built in.
      digits: whether every digit is a word, before the pattern is applied.
      whole: whether a word that is in the vocabulary becomes one token even if no sequence of
        merges produces it (`ignore_merges`).
      adds_bos: whether llama.cpp begins a text with BOS if the file does not say it.
      also_whole: whether the name is also that of tokenizers with `ignore_merges`. llama.cpp's
        converter uses gpt-4o for those of gpt-oss, in which merges produce every token.
    """

    pattern: str | None = None
    digits: bool = False
    whole: bool = False
    adds_bos: bool = False
    also_whole: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The pre-tokenizer, which also maps bytes to the characters of the vocabulary."""
        steps: list[pre_tokenizers.PreTokenizer] = (
            [pre_tokenizers.Digits(individual_digits=True)] if self.digits else []
        )
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), "isolated"))
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None)
        return pre_tokenizers.Sequence([*steps, to_bytes]) if steps else to_bytes


# The first name of equal values is written. `default` follows transformers: llama.cpp splits
# differently, and warns that a file with it should be converted again.
PRE_TYPES = {
    "gpt-2": Words(),
    "default": Words(),
    "smollm": Words(digits=True),
    "llama-bpe": Words(LLAMA3, whole=True, adds_bos=True),
    "llama3": Words(LLAMA3, whole=True, adds_bos=True),
    "llama-v3": Words(LLAMA3, whole=True, adds_bos=True),
    "dbrx": Words(LLAMA3),
    "smaug-bpe": Words(LLAMA3),
    "qwen2": Words(QWEN2),
    "deepseek-r1-qwen": Words(QWEN2),
    "tekken": Words(TEKKEN, whole=True, adds_bos=True),
    "gpt-4o": Words(GPT4O, also_whole=True),
}


def pre_type(pre_tokenizer: dict[str, Any] | None, *, whole: bool) -> str | None:
    """The name of a tokenizer.json's `pre_tokenizer`; None if the table does not have it.

    Only its own text is compared with the table; no pattern is run.

    Args:
      whole: `ignore_merges` of the tokenizer's model.
    """
    steps = _steps(pre_tokenizer)
    for name, words in PRE_TYPES.items():
        if (words.whole == whole or (whole and words.also_whole)) and _steps(_as_json(words)) == steps:
            return name
    return None


def _as_json(words: Words) -> dict[str, Any]:
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": words.pattern is None}
    digits = [{"type": "Digits", "individual_digits": True}] if words.digits else []
    split = {"type": "Split", "pattern": {"Regex": words.pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [*digits, *([split] if words.pattern is not None else []), to_bytes]}


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, without the fields that change no token."""
    if pre_tokenizer is None:
        return []
    if pre_tokenizer.get("type") == "Sequence":
        return [step for part in pre_tokenizer["pretokenizers"] for step in _steps(part)]
    return [{key: value for key, value in pre_tokenizer.items() if key != "trim_offsets"}]
