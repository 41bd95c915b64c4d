"""Conversations as OpenAI and ShareGPT write them, and what is refused by name."""

import json

import pytest

from lcjax.data import ChatTemplate, read_documents
from lcjax.errors import InputError
from tests.support.chats import CHATML, read, write

# Writes what a template of a model with tools writes: the calls and the role of their results.
WITH_CALLS = CHATML.replace(
    "BODY",
    "{{ message.content }}{% for call in message.tool_calls or [] %}"
    "{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}<|im_end|>",
)
MESSAGES = [
    {"role": "system", "content": "Be exact."},
    {"role": "user", "content": "Weather in Lima?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Lima"}}}],
    },
    {"role": "tool", "content": "18 degrees"},
    {"role": "assistant", "content": "It is 18 degrees."},
]
SHAREGPT = [
    {"from": "system", "value": "Be exact."},
    {"from": "human", "value": "Weather in Lima?"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Lima"}}'},
    {"from": "observation", "value": "18 degrees"},
    {"from": "gpt", "value": "It is 18 degrees."},
]


def with_json_arguments(messages):
    """The messages as OpenAI writes them, with the arguments of calls as JSON strings."""
    copied = json.loads(json.dumps(messages))
    for message in copied:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        if message.get("tool_calls"):
            message["content"] = None
    return copied


@pytest.fixture
def tokenizer(with_template):
    return with_template(WITH_CALLS.replace("message.content }}", "message.content or '' }}"))


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": SHAREGPT},
        {"conversations": SHAREGPT[1:], "system": "Be exact."},
        {"conversations": MESSAGES},
        {"messages": with_json_arguments(MESSAGES)},
        {
            "messages": [
                MESSAGES[0],
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Lima?"}],
                },
                *MESSAGES[2:],
            ]
        },
    ],
    ids=["sharegpt", "system field", "roles", "openai", "text parts"],
)
def test_every_form_is_the_same_conversation(tokenizer, tmp_path, caplog, record):
    corpus = read(write(tmp_path / "a.jsonl", [record]), tokenizer)
    assert corpus.document(0).tolist() == tokenizer.apply_chat_template(MESSAGES)["input_ids"]
    learned = tokenizer.decode(corpus.document(0)[corpus.learned])
    assert learned == 'weather({"city": "Lima"})<|im_end|>It is 18 degrees.<|im_end|>'
    assert not caplog.messages


IMAGE = {"type": "image_url", "image_url": {"url": "http://x"}}
USER, ANSWER = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": [{"role": "user", "content": [IMAGE]}, ANSWER]}, "has in message 1 a part of type image_url"),
        ({"messages": [{"role": "user", "content": ["u"]}, ANSWER]}, "not of parts with a type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}, ANSWER]}, "whose text is not a string"),
        ({"messages": [USER, ANSWER], "images": ["x.png"]}, "has images in addition to its conversation"),
        ({"conversations": SHAREGPT, "video": "x.mp4"}, "has video in addition to its conversation"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "has turn 1 from 'narrator', which is none of"),
        ({"conversations": [{"from": "human"}]}, 'not like {"from": "human", "value": "..."}'),
        ({"conversations": []}, "has conversations that are not a list of turns"),
        ({"conversations": SHAREGPT, "system": "x"}, "has a system prompt in addition to that of its conversations"),
        ({"conversations": [{"from": "function_call", "value": "f("}]}, "has in turn 1 calls that are not JSON"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "has in message 2 a tool call with arguments that are not JSON",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]},
            "has in message 2 a tool call whose arguments are a list, not an object",
        ),
        (
            {"conversations": [SHAREGPT[0], {"from": "function_call", "value": '{"name": "f", "arguments": "3"}'}]},
            "has in turn 2 a tool call whose arguments are a number, not an object",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"type": "function", "function": None}]}]},
            "has in message 2 a tool call without the name of a function",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"type": "function", "function": "f"}]}]},
            "has in message 2 a tool call whose function is not an object",
        ),
        ({"prompt": [USER], "completion": [{"role": "assistant"}]}, "has in message 1 of its completion a content"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": "f()"}]}, "tool_calls that are not a list of objects"),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b"},
            "is a preference pair (chosen and rejected), which is not yet supported",
        ),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "is a preference pair"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_refused_by_name(tokenizer, tmp_path, record, said):
    path = write(tmp_path / "a.jsonl", [record])
    with pytest.raises(InputError) as caught:
        read_documents([path], ChatTemplate(tokenizer))
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}:1 ")


def test_preference_pairs_with_messages_are_read_as_messages(tokenizer, tmp_path, caplog):
    record = {"messages": [USER, ANSWER], "chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}
    assert len(read(write(tmp_path / "a.jsonl", [record]), tokenizer)) == 1
    assert all(f"{field} (of 1)" in caplog.text for field in ("chosen", "rejected"))
