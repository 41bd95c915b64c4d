"""From tokens to text as they come, and which tokens end it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lcjax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TextStream:
    """Text of tokens that come one by one; a character made of several tokens comes with its last."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        from tokenizers.decoders import DecodeStream

        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def add(self, token: int) -> str:
        """What became readable with this token; "" where it is part of a character, or a special token."""
        return self._stream.step(self._backend, token) or ""


def stop_ids(tokenizer: PreTrainedTokenizerFast, model_path: Path) -> frozenset[int]:
    """The tokens that end a text: the tokenizer's EOS, and what generation_config.json beside the model names.

    (Llama 3's instruct models end a turn with a token that is not the tokenizer's EOS in all of their releases.)

    Raises:
      InputError: that file is corrupt.
    """
    found = [tokenizer.eos_token_id]
    path = model_path / "generation_config.json"
    if path.is_file():
        try:
            named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError):
            raise InputError(f"{path} is no JSON object; download it again, or delete it") from None
        found += named if isinstance(named, list) else [named]
    return frozenset(token for token in found if isinstance(token, int))
