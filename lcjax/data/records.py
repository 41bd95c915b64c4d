"""From a record, a line of a .jsonl file or a row of a table, to a document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lcjax.data.chat import CannotRender, ChatTemplate
from lcjax.data.document import Document

FIELDS = ("messages", "prompt", "completion", "text")
_NEEDED = "a record needs text, or messages, or prompt and completion"


class BadRecord(Exception):
    """The record gives no document; the message says why."""


def document_of_line(line: bytes, name: str, template: ChatTemplate | None) -> Document:
    """The document of one line of a .jsonl file.

    Raises:
      BadRecord: it is not UTF-8 or not JSON, or see `document_of_record`.
    """
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadRecord(f"is not UTF-8 (byte {error.start} of the line)") from None
    except json.JSONDecodeError as error:
        raise BadRecord(f"is not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"is not JSON that can be read ({error})") from None
    if not isinstance(record, dict):
        raise BadRecord(f"is a JSON {type(record).__name__}, not an object; {_NEEDED}")
    return document_of_record(record, name, template)


def document_of_record(record: Mapping[str, Any], name: str, template: ChatTemplate | None) -> Document:
    """The document that the first of these fields gives: `messages`, `prompt` with `completion`, `text`.

    Args:
      record: other fields do not matter.
      name: of the document.
      template: how conversations are written; None refuses them.

    Raises:
      BadRecord: a field of another type, nothing to learn from, or a conversation that the template refuses.
    """
    given = {field for field in FIELDS if record.get(field) is not None}
    try:
        if "messages" in given:
            messages = _messages(record, "messages")
            document = Document(name, *_need(template).conversation(messages), is_rendered=True)
        elif {"prompt", "completion"} <= given:
            document = _completed(record, name, template)
        elif "text" in given:
            document = Document(name, _string(record, "text"))
        else:
            filled = [str(field) for field, value in record.items() if value is not None]
            raise BadRecord(f"has no {_missing(given)} (it has {', '.join(filled[:5]) or 'none'}); {_NEEDED}")
    except CannotRender as error:
        raise BadRecord(str(error)) from None
    _refuse_half_characters(document.text)
    if not any(document.text[start:stop].strip() for start, stop in document.learned or [(0, len(document.text))]):
        raise BadRecord("holds nothing to learn from")
    return document


def _completed(record: Mapping[str, Any], name: str, template: ChatTemplate | None) -> Document:
    if isinstance(record["prompt"], str) and isinstance(record["completion"], str):
        text = record["prompt"] + record["completion"]
        return Document(name, text, ((len(record["prompt"]), len(text)),))
    prompt, completion = _messages(record, "prompt"), _messages(record, "completion")
    return Document(name, *_need(template).completion(prompt, completion), is_rendered=True)


def _missing(given: set[str]) -> str:
    others = {"prompt", "completion"} - given
    return others.pop() if len(others) == 1 else "field that is read"


def _need(template: ChatTemplate | None) -> ChatTemplate:
    if template is None:
        raise BadRecord("is a conversation, which needs a tokenizer with a chat template; name a --model")
    return template


def _string(record: Mapping[str, Any], field: str) -> str:
    value = record[field]
    if not isinstance(value, str):
        raise BadRecord(f"has a {field} of type {type(value).__name__}, not a string")
    return value


def _messages(record: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    """The messages without fields that are null: a table has every field in every row."""
    messages = record[field]
    if not isinstance(messages, list) or not messages:
        raise BadRecord(f"has a {field} that is no list of messages")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRecord(f'has a message {number} in {field} that is not like {{"role": "user", "content": "..."}}')
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise BadRecord(f"has a message {number} in {field} whose content is no string")
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def _refuse_half_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"has half a surrogate pair at character {error.start} of its text; repair it") from None
