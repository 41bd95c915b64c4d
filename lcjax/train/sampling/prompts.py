"""Reads the prompts of --sample-prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lcjax.errors import InputError
from lcjax.generate.chat import Message, chat_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Prompt = str | list[Message]
"""A text to continue, or a conversation to answer."""


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: one a line, or in a .jsonl file one conversation a line.

    A conversation is an object with `messages`, each with `role` and `content`. Empty lines are
    ignored.

    Raises:
      InputError: the file cannot be read, a line is invalid, or there is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--sample-prompts {path} cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--sample-prompts {path} is not UTF-8 (byte {error.start}); give text") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise InputError(f"--sample-prompts {path} has no prompts; write one on each line")
    if path.suffix.lower() == ".jsonl":
        return [_conversation(line, f"--sample-prompts {path}, line {number}") for number, line in lines]
    return [line for _, line in lines]


def prompt_ids(prompts: list[Prompt], tokenizer: PreTrainedTokenizerFast, longest: int, path: Path) -> list[list[int]]:
    """The tokens of each prompt; of a conversation in the model's chat template.

    Raises:
      InputError: a prompt has more than `longest` tokens, or the model has no chat template.
    """
    encoded = list(_encoded(prompts, tokenizer, path))
    if (most := max(map(len, encoded))) > longest:
        raise InputError(
            f"--sample-prompts {path} has a prompt of {most:,} tokens, more than the {longest:,} of --max-seq-length; "
            "shorten it"
        )
    return encoded


def _encoded(prompts: list[Prompt], tokenizer: PreTrainedTokenizerFast, path: Path) -> Iterator[list[int]]:
    for prompt in prompts:
        if isinstance(prompt, str):
            yield list(tokenizer(prompt, verbose=False)["input_ids"])
            continue
        if not tokenizer.chat_template:
            raise InputError(
                f"--sample-prompts {path} has conversations, but the model's tokenizer has no chat template; give a text "
                "file with one prompt a line"
            )
        yield chat_ids(tokenizer, prompt)


def _conversation(line: str, place: str) -> list[Message]:
    try:
        messages = json.loads(line)["messages"]
    except (ValueError, TypeError, KeyError):
        raise InputError(f'{place} is not an object with "messages"; give one conversation a line') from None
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise InputError(f'{place} has messages without a "role" and a "content" that are texts; give both')
    return messages


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("role", "content"))
