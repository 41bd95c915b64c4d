"""Decodes tokens to text as they arrive, and finds the tokens that end a text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lcjax import weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_UNFINISHED = "\ufffd"  # the result of decoding incomplete UTF-8
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class TextStream:
    """Decodes tokens that arrive one by one; a character of several tokens comes with its last.

    All pieces together, including that of `finish`, equal the decoding of all tokens at once,
    without special tokens.

    Only a few tokens are decoded at a time: the pending ones, and enough earlier ones as context,
    because many decoders treat the first token of a text differently.
    (`tokenizers.decoders.DecodeStream` does the same, but raises an error if bytes that it has read
    turn out not to form a character.)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._backend = tokenizer.backend_tokenizer
        added = self._backend.get_added_tokens_decoder()
        self._special = {token for token, content in added.items() if content.special}
        self._window: list[int] = []
        # Positions in the window at which tokens begin whose text was returned at once. The last
        # one is the first token whose text has not been returned.
        self._starts = [0]

    def add(self, token: int) -> str:
        """The text that this token completes; "" for part of a character or a special token."""
        name = None if token in self._special else self._backend.id_to_token(token)
        if name is None:
            return ""
        self._window.append(token)
        # A decoder with byte fallback decodes adjacent bytes together: one invalid byte spoils all
        # of them.
        if _BYTE.fullmatch(name):
            return ""
        given, text = self._decoded(0, self._starts[-1]), self._decoded(0)
        if text.endswith(_UNFINISHED) or not text.startswith(given) or len(text) == len(given):
            return ""
        self._slide()
        return text[len(given) :]

    def finish(self) -> str:
        """The text that is still pending after the last token."""
        given, text = self._decoded(0, self._starts[-1]), self._decoded(0)
        self._window, self._starts = [], [0]
        return text[len(given) :]

    def _slide(self) -> None:
        """Drops the tokens before those that suffice as context."""
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
    """The tokens that end a text: the tokenizer's EOS, and those in the model's config files.

    The files are config.json and generation_config.json. (Llama 3's instruct models end a turn with
    a token that is not the tokenizer's EOS in all of their releases.) In a GGUF file they are the
    tokens that end a text, a turn and a message.

    Raises:
      InputError: one of the files is corrupt.
    """
    generation_config = json.loads(weights.read_generation_config(model_path) or "{}")
    config = weights.open_model_files(model_path).config
    return weights.stop_ids(tokenizer.eos_token_id, config.eos_token_id, generation_config.get("eos_token_id"))
