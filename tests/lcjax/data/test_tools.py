"""Tools: definitions are passed to the template, and an unmarked call is an invalid record."""

import json

import pytest

from tests.support.chats import CHATML, MARKED, PLAIN, read, write

CALLING = CHATML.replace(
    "BODY",
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% else %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% endif %}{{ '<|im_end|>' }}",
).replace("{% for message in messages %}", "{{ tools | tojson if tools else '' }}{% for message in messages %}", 1)
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
USER = {"role": "user", "content": "u"}
MARKING_THE_ASSISTANT = MARKED.replace(
    "message['role'] == 'assistant'", "message['role'] == 'assistant' and not message.tool_calls"
)
MARKING_THE_ASSISTANT = MARKING_THE_ASSISTANT.replace(
    "{% else %}{{ message['content']", "{% else %}{{ (message.content or 'call')"
)


def test_a_row_of_which_the_template_marks_nothing_is_one_bad_record(with_template, tmp_path, caplog):
    tokenizer = with_template(MARKING_THE_ASSISTANT)
    records = [{"messages": [USER, {"role": "assistant", "content": "a"}]}, {"messages": [USER, CALL]}]
    corpus = read(write(tmp_path / "a.jsonl", records), tokenizer)
    assert len(corpus) == 1
    assert "a.jsonl:2 has nothing that the chat template marks as the assistant's ({% generation %})" in caplog.text


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
def test_tools_reach_the_template(with_template, tmp_path, caplog, tools):
    tokenizer = with_template(CALLING)
    chat = [USER, CALL, USER, {"role": "assistant", "content": "done"}]
    records = [{"messages": chat, "tools": tools}, {"prompt": chat[:3], "completion": chat[3:], "tools": tools}]
    corpus = read(write(tmp_path / "a.jsonl", [*records, {"messages": chat, "tools": None}]), tokenizer)
    for i, given in enumerate((TOOLS, TOOLS, None)):
        assert corpus.document(i).tolist() == tokenizer.apply_chat_template(chat, tools=given)["input_ids"]
    assert not caplog.messages


def test_a_separate_template_for_tools_is_used(with_template, tmp_path):
    tokenizer = with_template({"default": PLAIN, "tool_use": CALLING})
    chat = [USER, {"role": "assistant", "content": "done"}]
    corpus = read(write(tmp_path / "a.jsonl", [{"messages": chat, "tools": TOOLS}, {"messages": chat}]), tokenizer)
    for i, tools in enumerate((TOOLS, None)):
        assert corpus.document(i).tolist() == tokenizer.apply_chat_template(chat, tools=tools)["input_ids"]
    assert corpus.document(0).tolist() != corpus.document(1).tolist()


def test_tools_that_a_template_does_not_write_are_counted(with_template, tmp_path, caplog):
    chat = [USER, {"role": "assistant", "content": "done"}]
    path = write(tmp_path / "a.jsonl", [{"messages": chat, "tools": TOOLS}, {"messages": chat, "tools": []}])
    read(path, with_template(PLAIN))
    assert caplog.messages == [
        f"fields of records of {path} that are not read: tools (of 1); the chat template does not write tools"
    ]


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ("{", "has tools that are not JSON ("),
        ({"a": 1}, "has tools that are not a list of objects"),
        (["f"], "has tools that"),
    ],
)
def test_bad_tools_are_a_bad_record(with_template, tmp_path, caplog, tools, said):
    chat = [USER, {"role": "assistant", "content": "done"}]
    path = write(tmp_path / "a.jsonl", [{"messages": chat}, {"messages": chat, "tools": tools}])
    assert len(read(path, with_template(CALLING))) == 1
    assert f"a.jsonl:2 {said}" in caplog.text
