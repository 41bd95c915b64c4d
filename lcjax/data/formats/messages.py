"""Conversations in a record, as the list of messages that a chat template takes.

OpenAI's form is `messages` with `role` and `content`, and ShareGPT's is `conversations` with `from`
and `value`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lcjax.data.formats.chat import Tools

Messages = list[dict[str, Any]]

# ShareGPT's names of the speakers, and those of the tools that write it.
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
_CALL = "function_call"
# Fields with which a conversation has more than text.
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")


class BadRecord(Exception):
    """The record does not yield a document; the message gives the reason."""


def messages_of(record: Mapping[str, Any], field: str) -> Messages:
    """The messages in a field, without null fields, which are the same as absent ones.

    The arguments of tool calls are objects, as chat templates need them. OpenAI's JSON strings are
    parsed. A content of several text parts is joined.

    Raises:
      BadRecord: it is not a list of messages, or a message has something that is not text.
    """
    refuse_media(record)
    messages = record[field]
    if not isinstance(messages, list) or not messages:
        raise BadRecord(f"has a {field} that is not a list of messages")
    of = "" if field in ("messages", "conversations") else f" of its {field}"
    return [_message(message, f"message {number}{of}") for number, message in enumerate(messages, start=1)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise BadRecord(f'has as {where} something that is not like {{"role": "user", "content": "..."}}')
    message = {key: value for key, value in message.items() if value is not None}
    if isinstance(content := message.get("content"), list):
        message["content"] = _joined(content, where)
    calls = message.get("tool_calls")
    if not isinstance(message.get("content"), str) and not calls:
        raise BadRecord(f"has in {where} a content that is not a string")
    if calls:
        message["tool_calls"] = _calls(calls, where)
    return message


def _joined(parts: list[Any], where: str) -> str:
    """The text of a content in parts.

    Raises:
      BadRecord: a part is not text; the message names its type.
    """
    texts = []
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise BadRecord(f"has in {where} a content that is a list, but not of parts with a type")
        if part["type"] != "text":
            raise BadRecord(f"has in {where} a part of type {part['type']}, and only text is supported")
        if not isinstance(part.get("text"), str):
            raise BadRecord(f"has in {where} a part of type text whose text is not a string")
        texts.append(part["text"])
    return "".join(texts)


def _calls(calls: Any, where: str) -> list[Any]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRecord(f"has in {where} tool_calls that are not a list of objects")
    return [_call(call, where) for call in calls]


def _call(call: dict[str, Any], where: str) -> dict[str, Any]:
    """A call with its arguments as an object."""
    function = call.get("function")
    if function is not None:
        if not isinstance(function, dict):
            raise BadRecord(f"has in {where} a tool call whose function is not an object")
        return call | {"function": _call(function, where)}
    call = {key: value for key, value in call.items() if key != "function"}
    if not isinstance(call.get("name"), str):
        raise BadRecord(f"has in {where} a tool call without the name of a function")
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        arguments = _parsed(arguments or "{}", f"in {where} a tool call with arguments")
    if arguments is None:
        return call
    if not isinstance(arguments, dict):
        raise BadRecord(f"has in {where} a tool call whose arguments are a {_type(arguments)}, not an object")
    return call | {"arguments": arguments}


def _type(value: Any) -> str:
    """What JSON calls the type of a value."""
    return {list: "list", str: "string", bool: "truth value"}.get(type(value), "number")


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"has {what} that are not JSON ({error})") from None


def conversations_of(record: Mapping[str, Any]) -> Messages:
    """The messages of a record in ShareGPT's form, with a `system` prompt if the record has one.

    Raises:
      BadRecord: a turn has another form, or its speaker is unknown.
    """
    refuse_media(record)
    turns = record["conversations"]
    if not isinstance(turns, list) or not turns:
        raise BadRecord("has conversations that are not a list of turns")
    if all(isinstance(turn, dict) and "role" in turn for turn in turns):
        messages = messages_of(record, "conversations")
    else:
        messages = [_turn(turn, f"turn {number}") for number, turn in enumerate(turns, start=1)]
    system = record.get("system")
    if not system:
        return messages
    if not isinstance(system, str):
        raise BadRecord(f"has a system of type {type(system).__name__}, not a string")
    if messages[0]["role"] == "system":
        raise BadRecord("has a system prompt in addition to that of its conversations; remove one")
    return [{"role": "system", "content": system}, *messages]


def _turn(turn: Any, where: str) -> dict[str, Any]:
    if not isinstance(turn, dict) or not isinstance(turn.get("from"), str) or not isinstance(turn.get("value"), str):
        raise BadRecord(f'has as {where} something that is not like {{"from": "human", "value": "..."}}')
    if turn["from"] == _CALL:
        calls = _parsed(turn["value"], f"in {where} calls")
        calls = calls if isinstance(calls, list) else [calls]
        if not all(isinstance(call, dict) for call in calls):
            raise BadRecord(f"has in {where} calls that are not objects")
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": _call(c, where)} for c in calls],
        }
    if turn["from"] not in _ROLES:
        known = ", ".join((*_ROLES, _CALL))
        raise BadRecord(f"has {where} from {turn['from']!r}, which is none of {known}")
    return {"role": _ROLES[turn["from"]], "content": turn["value"]}


def refuse_media(record: Mapping[str, Any]) -> None:
    """Raises BadRecord if a conversation has images, audio or video."""
    for field in _MEDIA:
        if record.get(field):
            raise BadRecord(f"has {field} in addition to its conversation, and only text is supported")


def tools_of(tools: Any) -> Tools | None:
    """The definitions of functions, from a list of objects or its JSON string; None if empty.

    Raises:
      BadRecord: they are something else.
    """
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise BadRecord(f"has tools that are not JSON ({error})") from None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRecord("has tools that are not a list of objects")
    return tools
