"""Small tokenizers with every kind of pipeline of tokenizer.json, and directories with them."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPACE = "▁"
SPECIAL = ["<unk>", "<s>", "</s>"]

NORMALIZERS = {
    "none": None,
    "replace": normalizers.Replace(" ", SPACE),
    "prepend and replace": normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]),
    "nfc": normalizers.NFC(),
    "lowercase": normalizers.Lowercase(),
}
PRE_TOKENIZERS = {
    "none": None,
    "byte level": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "byte level with a prefix": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "metaspace": pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
    "metaspace everywhere": pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
    "split": pre_tokenizers.Split(Regex(r"\d|[a-z]+| "), "isolated"),
}
DECODERS = {
    "byte level": decoders.ByteLevel(),
    "byte fallback": decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    ),
    "byte fallback, no strip": decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    ),
    "metaspace": decoders.Metaspace(),
}


def pipeline(normalizer="none", pre_tokenizer="none", *, decoder="byte fallback", bos=False) -> Tokenizer:
    """Returns a BPE tokenizer with letters, their byte-level forms, all bytes and a few merges."""
    letters = sorted({*pre_tokenizers.ByteLevel.alphabet(), *"abcdeéABC 1,\n", SPACE})
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [(SPACE, "a"), ("a", "b"), (SPACE + "a", "b"), ("Ġ", "a"), (" ", "a"), ("e", "\u0301")]
    tokens = [*SPECIAL, *byte_tokens, *letters, "\u0301", "\n\n"]
    tokens += [left + right for left, right in merges]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if NORMALIZERS[normalizer] is not None:
        tokenizer.normalizer = NORMALIZERS[normalizer]
    if PRE_TOKENIZERS[pre_tokenizer] is not None:
        tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre_tokenizer]
    tokenizer.decoder = DECODERS[decoder]
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return tokenizer


def write(directory: Path, tokenizer: Tokenizer, label: str | None, **config) -> Path:
    """Writes tokenizer.json, and a tokenizer_config.json with the given `tokenizer_class`."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", **config}
    if label is not None:
        named["tokenizer_class"] = label
    # The layout differs from that of json.dumps, because copying must preserve the bytes.
    (directory / "tokenizer_config.json").write_text(json.dumps(named, separators=(" ,", ":")) + "\r\n", newline="")
    return directory
