"""Decodes tokens to text as they arrive, and finds the tokens that end it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lcjax import weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_UNFINISHED = "\ufffd"  # what incomplete UTF-8 is decoded to
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class TextStream:
    """Text of tokens that come one by one; a character made of several tokens comes with its last.

    All pieces together, `finish`'s included, are the text that the tokenizer decodes from all tokens at once, special tokens left
    out.

    Only a few tokens are decoded at a time: those not yet read, and before them enough that have been, since many decoders treat
    the first token of a text unlike the others. (`tokenizers.decoders.DecodeStream` does the same and raises where bytes that have
    been read turn out to belong to no character.)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._backend = tokenizer.backend_tokenizer
        added = self._backend.get_added_tokens_decoder()
        self._special = {token for token, content in added.items() if content.special}
        self._window: list[int] = []
        # Where in the window tokens began whose text was given at once; the last is the first that has not been given.
        self._starts = [0]

    def add(self, token: int) -> str:
        """What became readable with this token; "" where it is part of a character, or a special token."""
        name = None if token in self._special else self._backend.id_to_token(token)
        if name is None:
            return ""
        self._window.append(token)
        # A decoder with a fallback to bytes reads adjoining ones together: one that fits no character spoils all of them.
        if _BYTE.fullmatch(name):
            return ""
        given, text = self._decoded(0, self._starts[-1]), self._decoded(0)
        if text.endswith(_UNFINISHED) or not text.startswith(given) or len(text) == len(given):
            return ""
        self._slide()
        return text[len(given) :]

    def finish(self) -> str:
        """The text that was still held back after the last token."""
        given, text = self._decoded(0, self._starts[-1]), self._decoded(0)
        self._window, self._starts = [], [0]
        return text[len(given) :]

    def _slide(self) -> None:
        """Forgets the tokens before those that now suffice as context."""
        for start in reversed(self._starts):
            if self._decoded(start):
                break
        else:
            start = 0
        self._starts = [at - start for at in self._starts if at >= start] + [len(self._window) - start]
        self._window = self._window[start:]

    def _decoded(self, start: int, stop: int | None = None) -> str:
        return self._backend.decode(self._window[start:stop], skip_special_tokens=True)


def stop_ids(tokenizer: PreTrainedTokenizerFast, model_path: Path) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's EOS, and what the model's config and generation_config.json name.

    (Llama 3's instruct models end a turn with a token that is not the tokenizer's EOS in all of their releases.) Of a GGUF file,
    those are the tokens that end a text, a turn and a message.

    Raises:
      InputError: one of the files is corrupt.
    """
    generation_config = json.loads(weights.read_generation_config(model_path) or "{}")
    config = weights.open_model_files(model_path).config
    return weights.stop_ids(tokenizer.eos_token_id, config.eos_token_id, generation_config.get("eos_token_id"))
