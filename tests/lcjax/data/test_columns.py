"""Columnar tables: nulls, invalid UTF-8, damaged files, and nested columns."""

import datetime
import json

import pyarrow
import pytest
from pyarrow import ipc, parquet

from lcjax.data import ChatTemplate, read_documents
from lcjax.errors import InputError

SHOWING = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{{ '\n' }}{% endfor %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
CALLS = [
    {"function": {"name": "weather", "arguments": {"city": "Paris"}}},
    {"function": {"name": "sum", "arguments": {"numbers": [1, 2], "unit": "m"}}},
]
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}},
    {"type": "function", "function": {"name": "sum", "parameters": {"properties": {"numbers": {"type": "array"}}}}},
]
CHATS = [
    {
        "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "tool_calls": [call]}],
        "tools": [tool],
    }
    for call, tool in zip(CALLS, TOOLS, strict=True)
]


@pytest.fixture(scope="module")
def showing(smol_tokenizer):
    """A chat template that writes all tools and calls."""
    tokenizer = type(smol_tokenizer)(tokenizer_object=smol_tokenizer.backend_tokenizer, chat_template=SHOWING)
    return ChatTemplate(tokenizer)


def write_parquet(path, table):
    parquet.write_table(table, path)


def write_stream(path, table):
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def not_utf8(values):
    """Returns a column of unchecked strings."""
    column = pyarrow.array([value if isinstance(value, bytes) else value.encode() for value in values])
    return pyarrow.Array.from_buffers(pyarrow.string(), len(column), column.buffers())


@pytest.mark.parametrize(
    ("name", "write"), [("a.parquet", write_parquet), ("a.arrow", write_stream), ("a.FEATHER", write_stream)]
)
def test_nulls_that_a_table_fills_in_are_not_learned(tmp_path, showing, name, write):
    write(tmp_path / name, pyarrow.Table.from_pylist(CHATS))
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(map(json.dumps, CHATS)))
    texts = [document.text for document in read_documents([tmp_path / name], showing)]
    assert texts == [document.text for document in read_documents([lines], showing)]
    assert not any("null" in text for text in texts)
    assert '"arguments": {"city": "Paris"}' in texts[0]
    assert json.dumps(TOOLS[1]) in texts[1]


def test_nulls_in_lines_of_json_are_preserved(tmp_path, showing):
    call = {"function": {"name": "weather", "arguments": {"city": "Paris", "unit": None}}}
    chat = [{"role": "user", "content": "u"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": chat}))
    [document] = read_documents([tmp_path / "a.jsonl"], showing)
    assert '"arguments": {"city": "Paris", "unit": null}' in document.text


def test_null_entries_of_maps_and_items_of_lists_are_preserved(tmp_path, showing):
    arguments = pyarrow.map_(pyarrow.string(), pyarrow.list_(pyarrow.int64()))
    call = pyarrow.struct([("name", pyarrow.string()), ("arguments", arguments)])
    message = pyarrow.struct(
        [("role", pyarrow.string()), ("content", pyarrow.string()), ("tool_calls", pyarrow.list_(call))]
    )
    rows = [
        [
            {"role": "user", "content": "u"},
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [("x", None), ("y", [1, None])]}]},
        ],
        [
            {"role": "user", "content": "u"},
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [("x", None), ("x", [1])]}]},
        ],
    ]
    write_parquet(tmp_path / "a.parquet", pyarrow.table({"messages": pyarrow.array(rows, pyarrow.list_(message))}))
    [document] = read_documents([tmp_path / "a.parquet"], showing)
    assert '"arguments": {"x": null, "y": [1, null]}' in document.text


@pytest.mark.parametrize(("name", "write"), [("a.parquet", write_parquet), ("a.arrow", write_stream)])
@pytest.mark.parametrize("nested", [False, True])
def test_text_that_is_not_utf8_is_a_bad_record(tmp_path, showing, caplog, name, write, nested):
    texts = ["one", b"caf\xe9", "three", "four é"]
    if nested:
        roles, turns = not_utf8(["user", "assistant"] * 4), not_utf8([text for text in texts for _ in "ua"])
        messages = pyarrow.StructArray.from_arrays([roles, turns], ["role", "content"])
        table = pyarrow.table(
            {"messages": pyarrow.ListArray.from_arrays(pyarrow.array([0, 2, 4, 6, 8], pyarrow.int32()), messages)}
        )
    else:
        table = pyarrow.table({"text": not_utf8(texts)})
    path = tmp_path / name
    write(path, table)
    documents = read_documents([path], showing)
    assert [document.name for document in documents] == [f"{path}:{row}" for row in (1, 3, 4)]
    assert documents[-1].text == ("user: four é\nassistant: four é\n" if nested else "four é")
    assert f"skipped 1 bad records of 4 of {path}: {path}:2 is not UTF-8" in caplog.text


def test_values_without_a_json_form_are_a_bad_record(tmp_path, showing, caplog):
    chats = [
        [{"role": "user", "content": "u", "at": at}, {"role": "assistant", "content": "a"}]
        for at in (None, datetime.date.today())
    ]
    write_parquet(tmp_path / "a.parquet", pyarrow.Table.from_pylist([{"messages": chat} for chat in chats]))
    assert len(read_documents([tmp_path / "a.parquet"], showing)) == 1
    assert "a.parquet:2 has a value of type date32[day], which cannot become text" in caplog.text


def test_columns_that_are_not_read_are_counted(tmp_path, caplog):
    write_parquet(
        tmp_path / "a.parquet", pyarrow.table({"text": ["a", "b"], "url": ["x", "y"], "image": [b"\xff", b""]})
    )
    assert len(read_documents([tmp_path / "a.parquet"])) == 2
    assert "that are not read: url (of 2), image (of 2)" in caplog.text
    write_parquet(tmp_path / "b.parquet", pyarrow.table({"url": ["x", "y"]}))
    with pytest.raises(
        InputError, match=r"b.parquet has the columns url, none of which is read; a record needs text, or"
    ):
        read_documents([tmp_path / "b.parquet"])


def test_a_text_in_many_rows_is_in_memory_once(tmp_path, caplog):
    rows = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 200, pyarrow.int32()), pyarrow.array(["word " * 100_000])
    )
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": rows}), path, compression="zstd", store_schema=False)
    documents = read_documents([path])
    # Once per group of rows that are read together.
    assert len({id(document.text) for document in documents}) <= 4
    assert (
        f"{path} has 100,000,000 characters of text in {path.stat().st_size:,} bytes: it repeats itself" in caplog.text
    )


DAMAGED = [("a.parquet", write_parquet), ("a.arrow", write_stream)]


def damaged(path, write, cut):
    """The bytes of a good table; the first `cut` of them are in `path`."""
    write(path, pyarrow.table({"text": ["some text"] * 50}))
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    return whole


@pytest.mark.parametrize("cut", [0, 7, 60, 300, -60])
@pytest.mark.parametrize(("name", "write"), DAMAGED)
def test_a_torn_table_is_refused_by_its_name(tmp_path, name, write, cut):
    path = tmp_path / name
    damaged(path, write, cut)
    with pytest.raises(InputError) as caught:
        read_documents([path])
    assert str(caught.value).startswith(f"{path} cannot be read as a table (")
    assert "None" not in str(caught.value)


@pytest.mark.parametrize(("name", "write"), DAMAGED)
def test_other_bytes_in_a_table_never_end_in_a_traceback(tmp_path, name, write):
    path = tmp_path / name
    whole = damaged(path, write, 0)
    refusals = 0
    for at in range(0, len(whole), 16):
        path.write_bytes(whole[:at] + bytes(255 - byte for byte in whole[at : at + 4]) + whole[at + 4 :])
        try:
            read_documents([path])
        except InputError:
            refusals += 1
    assert refusals > 10
