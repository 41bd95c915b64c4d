"""Builds a tokenizer from GGUF metadata: byte-level (`gpt2`) or SentencePiece-style BPE (`llama`).

Source of the metadata: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from lcjax.errors import InputError
from lcjax.weights.gguf.file import REMEDY, GgufFile
from lcjax.weights.gguf.words import PRE_TYPES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "▁"  # SentencePiece's symbol for a space


def gguf_tokenizer(file: GgufFile) -> PreTrainedTokenizerFast:
    """Builds the tokenizer; control tokens are special, user-defined tokens are matched whole.

    Raises:
      InputError: the file has no vocabulary, or one of an unsupported kind.
    """
    metadata = _TokenizerMetadata(file)
    builders = {"gpt2": _byte_level, "llama": _sentence_piece}
    kind = metadata.get("model")
    if kind not in builders:
        raise InputError(
            f"{file.path} says tokenizer.ggml.model={kind!r}; supported are {', '.join(builders)}: "
            "convert the file to Hugging Face's format elsewhere and give its directory"
        )
    tokenizer = builders[kind](metadata)
    _add_tokens(tokenizer, metadata)
    _add_template(tokenizer, metadata)
    # Importing transformers takes a second. A command's --help and argument errors should not wait.
    from transformers import PreTrainedTokenizerFast

    named = {
        "bos_token": metadata.token("bos_token_id"),
        "eos_token": metadata.token("eos_token_id"),
        "unk_token": metadata.token("unknown_token_id"),
        "pad_token": metadata.token("padding_token_id"),
        "chat_template": _templates(file),
    }
    # Absent named tokens must be passed as None; if omitted, bos and eos would become "<s>" and
    # "</s>".
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)


def _templates(file: GgufFile) -> str | dict[str, str] | None:
    """The chat template; if the file names more than one, all of them by name."""
    template = file.metadata.get("tokenizer.chat_template")
    names = file.metadata.get("tokenizer.chat_templates") or []
    named = {name: file.metadata.get(f"tokenizer.chat_template.{name}") for name in names}
    further = {name: text for name, text in named.items() if isinstance(text, str)}
    if not further:
        return template
    return further if template is None else {"default": template, **further}


class _TokenizerMetadata:
    """The `tokenizer.ggml.*` keys of a file."""

    def __init__(self, file: GgufFile):
        self.path: Path = file.path
        self._metadata = file.metadata
        self.tokens: list[str] = self.get("tokens") or []
        if not self.tokens or not all(isinstance(token, str) for token in self.tokens):
            raise InputError(f"{file.path} has no vocabulary (tokenizer.ggml.tokens); use a complete GGUF file")
        self.vocabulary = {token: index for index, token in enumerate(self.tokens)}
        self.merges: list[str] | None = self.get("merges")

    def get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}", default)

    def scores(self) -> list[float]:
        scores = self.get("scores")
        if scores is None:
            raise InputError(f"{self.path} lacks tokenizer.ggml.merges and tokenizer.ggml.scores; {REMEDY}")
        if len(scores) != len(self.tokens):
            raise InputError(
                f"{self.path} has {len(scores)} tokenizer.ggml.scores for {len(self.tokens)} tokens; {REMEDY}"
            )
        return scores

    def token(self, key: str) -> str | None:
        index = self.get(key)
        if index is None:
            return None
        if not 0 <= index < len(self.tokens):
            raise InputError(f"{self.path} says tokenizer.ggml.{key}={index} of {len(self.tokens)} tokens; {REMEDY}")
        return self.tokens[index]

    def pairs(self) -> list[tuple[str, str]]:
        """The merges, best first: as listed, or implied by the scores of the tokens."""
        if self.merges is None:
            return _merges_from_scores(self.vocabulary, self.scores())
        pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in self.merges)]
        for left, right in pairs:  # the library would panic
            if not {left, right, left + right} <= self.vocabulary.keys():
                raise InputError(f"{self.path}: the merge of {left!r} and {right!r} is not in the vocabulary; {REMEDY}")
        return pairs


def _byte_level(metadata: _TokenizerMetadata) -> Tokenizer:
    kind = metadata.get("pre", "default")
    if kind not in PRE_TYPES:
        raise InputError(
            f"{metadata.path} says tokenizer.ggml.pre={kind!r}; supported are {', '.join(PRE_TYPES)}: load the model "
            "from Hugging Face's format instead"
        )
    if metadata.merges is None:
        raise InputError(f"{metadata.path} lacks tokenizer.ggml.merges; convert the model to GGUF again")
    words = PRE_TYPES[kind]
    tokenizer = Tokenizer(models.BPE(metadata.vocabulary, metadata.pairs(), ignore_merges=words.whole))
    tokenizer.pre_tokenizer = words.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(metadata: _TokenizerMetadata) -> Tokenizer:
    prefix = metadata.get("add_space_prefix", True)
    tokenizer = Tokenizer(
        models.BPE(
            metadata.vocabulary,
            metadata.pairs(),
            unk_token=metadata.token("unknown_token_id"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=_SPACE, prepend_scheme="first" if prefix else "never", split=False
    )
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges_from_scores(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """All splits of a token into two other tokens, by decreasing score.

    For equal scores, longer parts come first.
    """
    ranked = []
    for token, index in vocabulary.items():
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [(left, right) for left, right in halves if left in vocabulary and right in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        ranked += [(scores[index], len(left), len(right), (left, right)) for left, right in pairs]
    ranked.sort(key=lambda entry: entry[:3], reverse=True)
    return [pair for *_, pair in ranked]


def _add_tokens(tokenizer: Tokenizer, metadata: _TokenizerMetadata) -> None:
    by_type: dict[int, list[AddedToken]] = {_CONTROL: [], _USER_DEFINED: []}
    for token, token_type in zip(metadata.tokens, metadata.get("token_type", ()), strict=False):
        if token_type in by_type:
            by_type[token_type].append(AddedToken(token, normalized=False, special=token_type == _CONTROL))
    tokenizer.add_special_tokens(by_type[_CONTROL])
    tokenizer.add_tokens(by_type[_USER_DEFINED])


def _add_template(tokenizer: Tokenizer, metadata: _TokenizerMetadata) -> None:
    """Adds bos and eos as the file says; if it says nothing, as llama.cpp does by default."""
    adds_bos = metadata.get("model") == "llama" or PRE_TYPES[metadata.get("pre", "default")].adds_bos
    bos = metadata.token("bos_token_id") if metadata.get("add_bos_token", adds_bos) else None
    eos = metadata.token("eos_token_id") if metadata.get("add_eos_token", False) else None
    before, after = ([bos] if bos else []), ([eos] if eos else [])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)],
        special_tokens=[(token, metadata.vocabulary[token]) for token in {*before, *after}],
    )
