"""A tokenizer as GGUF's metadata: the inverse of `lcjax.weights.gguf.tokenizer`.

Source of the keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer; llama.cpp,
src/llama-vocab.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gguf.constants import TokenType
from gguf.gguf_writer import GGUFWriter

from lcjax.errors import InputError
from lcjax.weights.gguf.words import PRE_TYPES, pre_type

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACE = "▁"  # SentencePiece's symbol for a space
_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
_PREPEND = {"type": "Prepend", "prepend": _SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
# It has no effect: no spaces are left.
_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
_END_OF_MESSAGE = "<|eom_id|>"
_REMEDY = "write a Hugging Face directory instead"


def add_tokenizer(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocab_size: int, ends: Sequence[int]
) -> str | None:
    """Adds the vocabulary, how text is split, the special tokens and the chat templates.

    GGUF has no place for a normalizer such as Qwen's NFC, nor for tokens that absorb the spaces
    around them or that match whole words only. llama.cpp does neither.

    Args:
      writer: gets the keys.
      tokenizer: byte-level BPE with words of a kind that llama.cpp knows, or BPE as converted from
        SentencePiece.
      vocab_size: the rows of the model's embedding. Those without a token get the name `[PAD id]`.
      ends: the ids of the tokens that end a text or a turn, apart from the tokenizer's EOS.

    Returns:
      A line about ends that GGUF has no place for, None if there are none.

    Raises:
      InputError: the tokenizer is of another kind, or has more tokens than the model.
    """
    pipeline = _Pipeline(tokenizer)
    if pipeline.is_byte_level:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pipeline.words())
    else:
        writer.add_tokenizer_model("llama")
        writer.add_add_space_prefix(pipeline.has_prefix())
    tokens, types = _tokens_and_types(pipeline, vocab_size)
    writer.add_token_list(tokens)
    if not pipeline.is_byte_level:
        writer.add_token_scores(_scores(tokens, pipeline.merges))
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in pipeline.merges])
    _add_templates(writer, tokenizer.chat_template)
    return _add_special_tokens(writer, pipeline, tokens, ends)


class _Pipeline:
    """The parts of a tokenizer.json."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.is_fast:
            raise self.refusal(f"its class {type(tokenizer).__name__} has no tokenizer.json")
        self.named = tokenizer
        self.backend: Any = tokenizer.backend_tokenizer
        self.parts = json.loads(self.backend.to_str())
        model = self.parts["model"]
        if model.get("type") != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise self.refusal(f"its model is {model.get('type')!r}, and only BPE without marks on words is written")
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        self.merges: list[tuple[str, str]] = [(left, right) for left, right in pairs]
        if any(" " in part for pair in self.merges for part in pair):
            raise self.refusal("its tokens contain spaces")
        self.is_byte_level = _ends_in_bytes(self.parts["pre_tokenizer"])

    def refusal(self, reason: str) -> InputError:
        return InputError(f"this tokenizer cannot be expressed in GGUF: {reason}; {_REMEDY}")

    def words(self) -> str:
        """llama.cpp's name for how a byte-level tokenizer splits text into words."""
        normalizer = self.parts["normalizer"]
        if normalizer not in (None, {"type": "NFC"}):
            raise self.refusal(f"its normalizer is {_shortened(normalizer)}")
        whole = bool(self.parts["model"].get("ignore_merges"))
        found = pre_type(self.parts["pre_tokenizer"], whole=whole)
        if found is None:
            known = ", ".join(dict.fromkeys(PRE_TYPES))
            raise self.refusal(
                f"its pre_tokenizer {_shortened(self.parts['pre_tokenizer'])} with ignore_merges={whole} "
                f"is none of {known}"
            )
        return found

    def has_prefix(self) -> bool:
        """Whether a tokenizer converted from SentencePiece puts a space before a text."""
        model = self.parts["model"]
        if not model.get("byte_fallback") or not model["vocab"].keys() >= _BYTES:
            raise self.refusal("it is neither byte-level nor has it a token for every byte, such as <0x00>")
        if any("\0" in token for token in model["vocab"]):  # llama.cpp would end them there
            raise self.refusal("its tokens contain the character NUL")
        normalizer, pre_tokenizer = _steps(self.parts["normalizer"], "normalizers"), self.parts["pre_tokenizer"]
        prefixes = {
            _key([_PREPEND, _REPLACE], None): True,
            _key([_REPLACE], None): False,
            _key([_REPLACE], _SPLIT): False,
            **{_key([], _metaspace(scheme)): scheme != "never" for scheme in ("first", "always", "never")},
        }
        found = prefixes.get(_key(normalizer, pre_tokenizer))
        if found is None:
            raise self.refusal(
                f"its normalizer {_shortened(self.parts['normalizer'])} and pre_tokenizer {_shortened(pre_tokenizer)} "
                "are not SentencePiece's"
            )
        return found

    def around(self) -> tuple[list[int], list[int]]:
        """The ids that are added before and after a text."""
        plain = self.backend.encode("a", add_special_tokens=False).ids
        full = self.backend.encode("a").ids
        for start in range(len(full) - len(plain) + 1):
            if full[start : start + len(plain)] == plain:
                return full[:start], full[start + len(plain) :]
        raise self.refusal("the tokens that it adds change the text's own")


def _metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": False}


def _key(normalizer: Any, pre_tokenizer: Any) -> str:
    return json.dumps([normalizer, pre_tokenizer], sort_keys=True)


def _steps(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return part[inner] if part.get("type") == "Sequence" else [part]


def _ends_in_bytes(pre_tokenizer: dict[str, Any] | None) -> bool:
    steps = _steps(pre_tokenizer, "pretokenizers")
    return bool(steps) and steps[-1].get("type") == "ByteLevel"


def _shortened(part: Any) -> str:
    text = json.dumps(part, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:120]}..."


def _tokens_and_types(pipeline: _Pipeline, vocab_size: int) -> tuple[list[str], list[int]]:
    vocabulary: dict[str, int] = pipeline.backend.get_vocab(with_added_tokens=True)
    if (count := max(vocabulary.values(), default=-1) + 1) > vocab_size:
        raise InputError(
            f"the tokenizer has ids up to {count - 1} and the model's embedding has {vocab_size} rows; "
            "use the tokenizer of this model"
        )
    unknown = None if pipeline.is_byte_level else pipeline.parts["model"].get("unk_token")
    added = {token["content"]: token["special"] for token in pipeline.parts["added_tokens"]}
    tokens, types = [""] * vocab_size, [int(TokenType.UNUSED)] * vocab_size
    for token, index in vocabulary.items():
        tokens[index], types[index] = token, _type(token, added, unknown, pipeline.is_byte_level)
    for index in set(range(vocab_size)) - set(vocabulary.values()):
        name = f"[PAD{index}]"
        while name in vocabulary:  # llama.cpp refuses a name that two tokens have
            name += "_"
        tokens[index] = name
    return tokens, types


def _type(token: str, added: dict[str, bool], unknown: str | None, is_byte_level: bool) -> int:
    if token == unknown:
        return int(TokenType.UNKNOWN)
    if not is_byte_level and token in _BYTES:
        return int(TokenType.BYTE)
    if token in added:
        return int(TokenType.CONTROL if added[token] else TokenType.USER_DEFINED)
    return int(TokenType.NORMAL)


def _scores(tokens: list[str], merges: list[tuple[str, str]]) -> list[float]:
    """Scores with which llama.cpp merges in the order of `merges`.

    It joins the neighbors whose union has the highest score. So a token's score is minus the rank
    of the first merge that produces it. Tokens that no merge produces come last.
    """
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _add_special_tokens(writer: GGUFWriter, pipeline: _Pipeline, tokens: list[str], ends: Sequence[int]) -> str | None:
    tokenizer = pipeline.named
    before, after = pipeline.around()
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None or not before else before[0]
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else (after or [*ends, None])[0]
    if before not in ([], [bos]) or after not in ([], [eos]):
        raise pipeline.refusal(f"it puts the tokens {before} before a text and {after} after it, not only BOS and EOS")
    named = {
        "bos": bos,
        "eos": eos,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    others = [end for end in dict.fromkeys(ends) if end != eos and 0 <= end < len(tokens)]
    others.sort(key=lambda end: tokens[end] == _END_OF_MESSAGE)  # last, if there is one
    names = ("eom",) if [tokens[end] for end in others] == [_END_OF_MESSAGE] else ("eot", "eom")
    slots = dict(zip(names, others, strict=False))
    for name, token in {**named, **slots}.items():
        if token is not None:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    writer.add_add_bos_token(bool(before))
    writer.add_add_eos_token(bool(after))
    if len(others) == len(slots):
        return None
    return (
        f"GGUF has places for 3 tokens that end a text: {', '.join(tokens[end] for end in others[2:])} "
        "ends it only if llama.cpp knows the name"
    )


def _add_templates(writer: GGUFWriter, template: str | dict[str, str] | None) -> None:
    """Adds the chat template, or all of them by name in a fixed order."""
    if isinstance(template, str):
        writer.add_chat_template(template)
    elif template:
        for name in (names := sorted(set(template) - {"default"})):
            writer.add_string(f"tokenizer.chat_template.{name}", template[name])
        writer.add_array("tokenizer.chat_templates", names)
        writer.add_string("tokenizer.chat_template", template.get("default", ""))
