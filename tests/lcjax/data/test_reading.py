import argparse
import json
import logging
import os

import pytest

from lcjax.data import Document, read_documents, stdlib_sources
from lcjax.errors import InputError


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_text_is_preserved_to_the_byte(tmp_path):
    text = "first\r\nsecond\rthird\n\n \u2028 ünïcode \U0001f600\t"
    path = write(tmp_path / "a.weird", text)
    assert read_documents([path]) == [Document(str(path), text)]
    assert read_documents([str(path)]) == [Document(str(path), text)]


def test_byte_order_mark_is_dropped(tmp_path):
    assert read_documents([write(tmp_path / "a.txt", b"\xef\xbb\xbfhello")])[0].text == "hello"
    assert read_documents([write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "hello"}')])[0].text == "hello"


def test_jsonl_names_lines_and_splits_only_at_newlines(tmp_path):
    texts = ["one", "two\u2028still two\x85and\x0bhere", "three"]
    lines = [json.dumps({"text": text, "id": 7}, ensure_ascii=False) for text in texts]
    path = write(tmp_path / "a.jsonl", "\r\n".join([lines[0], "", lines[1], lines[2], ""]))
    expected = [Document(f"{path}:{number}", text) for number, text in zip((1, 3, 4), texts, strict=True)]
    assert read_documents([path]) == expected


def test_folder_is_read_recursively_in_sorted_order(tmp_path, caplog):
    for name in ("b.py", "a.md", "z/c.txt", "d/e/LICENSE", "d/data.jsonl"):
        write(tmp_path / name, '{"text": "in a line"}' if name.endswith("jsonl") else name)
    for name in (".hidden", ".git/config", "__pycache__/x.py", "d/site-packages/y.py", "dist-packages/z.py"):
        write(tmp_path / name, "must not be read")
    write(tmp_path / "d/image.png", b"\x89PNG\r\n\x1a\n\0\0")
    write(tmp_path / "d/latin1.txt", "é".encode("latin-1"))
    (tmp_path / "d/dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "d/pipe")
    write(tmp_path / "d/blank.txt", " \n\t\n")
    caplog.set_level(logging.INFO, logger="lcjax.data")
    names = [os.path.relpath(document.name, tmp_path) for document in read_documents([tmp_path])]
    assert names == ["a.md", "b.py", "d/data.jsonl:1", "d/e/LICENSE", "z/c.txt"]
    assert f"skipped 4 files of {tmp_path}" in caplog.text
    assert "skipped 1 empty documents of 6" in caplog.text


def test_a_hidden_folder_can_be_named(tmp_path):
    write(tmp_path / ".notes/a.txt", "text")
    assert [document.text for document in read_documents([tmp_path / ".notes"])] == ["text"]


def test_a_file_reached_twice_is_read_once(tmp_path):
    first = write(tmp_path / "folder/a.txt", "a")
    write(tmp_path / "folder/b.txt", "b")
    (tmp_path / "folder/link.txt").symlink_to(first)
    (tmp_path / "folder/loop").symlink_to(tmp_path / "folder", target_is_directory=True)
    documents = read_documents([first, tmp_path / "folder", tmp_path / "folder/../folder/b.txt"])
    assert [document.text for document in documents] == ["a", "b"]


def refusal(paths):
    with pytest.raises(InputError) as caught:
        read_documents(paths)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{not json}", "is not JSON (Expecting property name enclosed in double quotes at column 2)"),
        ("[" * 100_000, "is not readable JSON"),
        ("9" * 5000, "is not readable JSON"),
        (b'{"text": "caf\xe9"}', "is not UTF-8 (byte 13 of the line)"),
        ('["text"]', "is a JSON list, not an object"),
        ('{"content": "x", "id": 1}', "has no field that is read (it has content, id)"),
        ("{}", "has no field that is read (it has none)"),
        ('{"text": 5}', "has a text of type int, not a string"),
        ('{"text": null}', "has no field that is read (it has none)"),
        ('{"text": " \\n"}', "has nothing to learn from"),
        (r'{"text": "ab\ud800"}', "has half a surrogate pair at character 2"),
        ('{"prompt": "x"}', "has no completion (it has prompt)"),
        ('{"prompt": "x", "completion": " "}', "has nothing to learn from"),
        ('{"prompt": "x", "completion": 3}', "has a prompt that is not a list of messages"),
        ('{"messages": []}', "has a messages that is not a list of messages"),
        ('{"messages": [{"role": "user"}]}', "has in message 1 a content that is not a string"),
        ('{"messages": ["hello"]}', "has as message 1 something that is not like"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "is a conversation, which needs a tokenizer"),
    ],
)
def test_a_bad_record_is_skipped_and_named(tmp_path, caplog, content, expected):
    content = content if isinstance(content, bytes) else content.encode()
    path = write(tmp_path / "a.jsonl", b'{"text": "good"}\n\n' + content + b"\n")
    assert read_documents([path]) == [Document(f"{path}:1", "good")]
    assert f"skipped 1 bad records of 2 of {path}: {path}:3 {expected}" in caplog.text
    assert refusal([write(tmp_path / "b.jsonl", content)]).startswith(f"{tmp_path / 'b.jsonl'}:1 {expected}")


def test_many_bad_records_are_counted_and_the_first_named(tmp_path, caplog):
    lines = ['{"text": "good"}', "torn"] * 50
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    assert len(read_documents([path])) == 50
    assert f"skipped 50 bad records of 100 of {path}: {path}:2 is not JSON" in caplog.text
    assert all(f"{path}:{line} " in caplog.text for line in (4, 6))
    assert f"{path}:8 " not in caplog.text
    assert "; and 47 more" in caplog.text


def test_a_path_with_more_bad_records_than_good_ones_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", "\n".join(['{"text": "good"}', "torn", "torn"]))
    assert refusal([path]).endswith(f"2 of 3 records of {path} are bad, more than half; correct them")
    for name in "abc":
        write(tmp_path / f"{name}.txt", "text")
    # The folder holds two bad records and four good documents.
    assert len(read_documents([tmp_path])) == 4


def test_refusals_name_the_path_and_the_remedy(tmp_path):
    missing = tmp_path / "missing.txt"
    assert refusal([missing]) == f"{missing} does not exist; check the path of the data"
    binary = write(tmp_path / "binary", b"ab\0cd")
    assert refusal([binary]).startswith(f"{binary} is a binary file; give UTF-8 text files")
    latin = write(tmp_path / "latin.txt", b"caf\xe9 au lait")
    assert refusal([latin]).startswith(f"{latin} is not UTF-8 (byte 3); give UTF-8 text files")
    (tmp_path / "empty").mkdir()
    assert refusal([tmp_path / "empty"]).startswith(f"the folder {tmp_path / 'empty'} has no files")
    write(tmp_path / "images/a.png", b"\0")
    assert "has no text among its 1 files" in refusal([tmp_path / "images"])
    blank = write(tmp_path / "blank.txt", " \n")
    assert refusal([blank]).startswith(f"all documents in {blank} are empty")
    assert refusal([write(tmp_path / "none.jsonl", "\n")]).startswith("all documents in")
    assert refusal([]).startswith("no data is given")


def test_a_path_that_cannot_be_opened_is_refused(tmp_path):
    path = tmp_path / ("x" * 300)
    assert refusal([path]).startswith(f"{path} cannot be read (File name too long)")


def test_stdlib_sources_are_the_library_without_its_tests():
    sources = stdlib_sources()
    assert argparse.__file__ in map(str, sources)
    assert sources == stdlib_sources()
    unwanted = {"test", "tests", "idle_test", "lib2to3", "site-packages", "__pycache__"}
    assert not [path for path in sources if unwanted & set(path.parts[len(sources[0].parts) - 1 :])]
    documents = read_documents(sources)
    assert sum(len(document.text) for document in documents) > 5_000_000
