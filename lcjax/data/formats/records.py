"""Converts a record, a line of a .jsonl file or a row of a table, to a document."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from lcjax.data.document import Document
from lcjax.data.formats.chat import CannotRender, ChatTemplate
from lcjax.data.formats.mapping import Columns
from lcjax.data.formats.messages import BadRecord as BadRecord
from lcjax.data.formats.messages import conversations_of, messages_of, tools_of

# In the order of precedence; the fields of one form are read together.
_FORMS = (("messages",), ("conversations",), ("prompt", "completion"), ("instruction", "output"), ("text",))
# Recognized, but refused.
_PREFERENCE = ("chosen", "rejected")
FIELDS = (*(field for form in _FORMS for field in form), *_PREFERENCE)
"""The fields that identify a record."""
READ_FIELDS = (*FIELDS, "input", "tools", "system", "history")
"""All fields that affect the document."""
NEEDED = (
    "a record needs text, or messages, or conversations, or prompt and completion, or instruction and output; "
    "--columns says which columns these are"
)

# The prompts of Stanford Alpaca (https://github.com/tatsu-lab/stanford_alpaca), with and without an
# input.
_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


class NotRecords(Exception):
    """The suffix is one of data, but the file has no records; the message says what it contains."""


def record_of_line(line: bytes) -> Any:
    """The value on one line of a .jsonl file.

    Raises:
      BadRecord: it is not UTF-8 or not JSON.
    """
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadRecord(f"is not UTF-8 (byte {error.start} of the line)") from None
    except json.JSONDecodeError as error:
        raise BadRecord(f"is not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"is not readable JSON ({error})") from None


def document_of_record(
    record: Any,
    name: str,
    template: ChatTemplate | None,
    unread: Counter[str] | None = None,
    columns: Columns | None = None,
) -> Document:
    """The document of a record.

    It is made from the first of these: `messages`, `conversations`, `prompt` with `completion`,
    `instruction` with `output`, `text`. Forms with a field that the user has named precede others.

    Args:
      record: a mapping by the names of its columns.
      name: of the document.
      template: how conversations are written; None rejects them.
      unread: counts the fields that are filled and not read.
      columns: the columns that stand for fields; None if none has another name.

    Raises:
      BadRecord: it is not a mapping, a field has the wrong type, there is nothing to learn from, or
        the template rejects the conversation.
    """
    if not isinstance(record, Mapping):
        raise BadRecord(f"is a JSON {type(record).__name__}, not an object; {NEEDED}")
    columns = columns or Columns()
    record = columns.renamed(record)
    given = {field for field in record if record[field] is not None}
    form = _form_of(record, given, columns.targets)
    try:
        document, read = _read(record, form, name, template)
    except CannotRender as error:
        raise BadRecord(str(error)) from None
    _refuse_half_characters(document.text)
    learned = [(0, len(document.text))] if document.learned is None else document.learned
    if not any(document.text[start:stop].strip() for start, stop in learned):
        raise BadRecord("has nothing to learn from")
    if unread is not None:
        filled = (field for field in record if field in given - read and record[field] not in ("", [], {}))
        unread.update(map(str, filled))
    return document


def _form_of(record: Mapping[str, Any], given: set[str], preferred: frozenset[str]) -> set[str]:
    """The fields of the record's form.

    Raises:
      BadRecord: it has none, or one that is not supported.
    """
    forms = sorted(map(set, _FORMS), key=preferred.isdisjoint)
    form = next((form for form in forms if given.issuperset(form)), None)
    if form is not None:
        return form
    if given.issuperset(_PREFERENCE):
        raise BadRecord(
            "is a preference pair (chosen and rejected), which is not yet supported; to train on the preferred "
            "answers, write them as messages or as completion"
        )
    filled = [str(field) for field in record if field in given]
    raise BadRecord(f"has no {_missing(given)} (it has {', '.join(filled[:5]) or 'none'}); {NEEDED}")


def _read(
    record: Mapping[str, Any], form: set[str], name: str, template: ChatTemplate | None
) -> tuple[Document, set[str]]:
    """The document, and the fields that it was made from."""
    if form == {"text"}:
        return Document(name, _string(record, "text")), form
    if form == {"instruction", "output"}:
        return _alpaca(record, name), form | {"input"}
    if form == {"prompt", "completion"} and isinstance(record["prompt"], str) and isinstance(record["completion"], str):
        return _completed(name, record["prompt"], record["completion"]), form
    if form == {"conversations"}:
        parts, form = [conversations_of(record)], form | {"system"}
    else:
        parts = [messages_of(record, field) for field in ("messages", "prompt", "completion") if field in form]
    if template is None:
        raise BadRecord("is a conversation, which needs a tokenizer with a chat template; give a --model")
    tools = tools_of(record.get("tools"))
    if tools is not None and template.writes_tools:
        form = form | {"tools"}
    write = template.conversation if len(parts) == 1 else template.completion
    return Document(name, *write(*parts, tools=tools), is_rendered=True), form


def _completed(name: str, prompt: str, completion: str) -> Document:
    text = prompt + completion
    return Document(name, text, ((len(prompt), len(text)),))


def _alpaca(record: Mapping[str, Any], name: str) -> Document:
    for field in ("system", "history"):
        if record.get(field):
            raise BadRecord(
                f"has a {field} in addition to its instruction, which is not read; write the record as messages"
            )
    instruction, output = _string(record, "instruction"), _string(record, "output")
    given = _string(record, "input") if record.get("input") is not None else ""
    # format() replaces only the fields of the template; braces in an instruction stay.
    prompt = (_ALPACA_WITH_INPUT if given else _ALPACA).format(instruction=instruction, input=given)
    return _completed(name, prompt, output)


def _missing(given: set[str]) -> str:
    """The missing field of a form that has the other one."""
    for form in _FORMS:
        others = set(form) - given
        if len(form) == 2 and len(others) == 1:
            return others.pop()
    return "field that is read"


def _string(record: Mapping[str, Any], field: str) -> str:
    value = record[field]
    if not isinstance(value, str):
        raise BadRecord(f"has a {field} of type {type(value).__name__}, not a string")
    return value


def _refuse_half_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"has half a surrogate pair at character {error.start} of its text; repair it") from None
