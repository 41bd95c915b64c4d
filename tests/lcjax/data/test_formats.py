"""File formats with records, by suffix. A file without records is named, and not trained on."""

import bz2
import gzip
import json
import lzma

import pyarrow
import pytest

from lcjax.data import Document, read_documents
from lcjax.errors import InputError

ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAdd {them}.\n\n### Input:\n2, 2\n\n### Response:\n4"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nSay 5.\n\n### Response:\n5"
)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(paths):
    with pytest.raises(InputError) as caught:
        read_documents(paths)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def zstd(content):
    with pyarrow.BufferOutputStream() as sink:
        with pyarrow.CompressedOutputStream(sink, "zstd") as packed:
            packed.write(content)
        return sink.getvalue().to_pybytes()


TWO = [{"text": 'one\nline, and "more"'}, {"text": "\u2028 zwei"}]
TWO_LINES = "\n".join(json.dumps(record) for record in TWO)
CSV = 'text,id\n"one\nline, and ""more""",1\n\u2028 zwei,2\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", TWO_LINES),
        ("a.JSONL", TWO_LINES),
        ("a.ndjson", TWO_LINES),
        ("a.json", TWO_LINES),
        ("a.json", json.dumps(TWO)),
        ("a.Json", "\ufeff" + json.dumps(TWO, indent=2)),
        ("a.csv", CSV),
        ("a.csv", "\ufeff" + CSV.replace("\n\u2028", "\r\n\u2028")),
        ("a.tsv", CSV.replace("text,id", "text\tid").replace('",1', '"\t1').replace("zwei,2", "zwei\t2")),
        ("a.jsonl.gz", gzip.compress(TWO_LINES.encode(), mtime=0)),
        ("a.json.bz2", bz2.compress(json.dumps(TWO).encode())),
        ("a.csv.xz", lzma.compress(CSV.encode())),
        ("a.jsonl.zst", zstd(TWO_LINES.encode())),
    ],
)
def test_files_of_records_give_a_document_a_record(tmp_path, name, content):
    path = write(tmp_path / name, content)
    documents = read_documents([path])
    assert [document.text for document in documents] == [record["text"] for record in TWO]
    assert documents[1].name == f"{path}:2"


def test_a_compressed_text_is_decompressed(tmp_path):
    path = write(tmp_path / "a.txt.gz", gzip.compress("a\r\nb é".encode()))
    assert read_documents([path]) == [Document(str(path), "a\r\nb é")]
    torn = write(tmp_path / "b.txt.gz", gzip.compress(b"some text " * 1000)[:40])
    assert refusal([torn]).startswith(f"{torn} cannot be decompressed (")
    for name in ("c.jsonl.gz", "c.txt.zst", "c.csv.xz"):
        assert "cannot be decompressed" in refusal([write(tmp_path / name, b"not packed at all")])


def test_the_alpaca_format_has_its_own_prompt(tmp_path):
    records = [
        {"instruction": "Add {them}.", "input": "2, 2", "output": "4"},
        {"instruction": "Say 5.", "input": "", "output": "5", "text": "not this"},
    ]
    documents = read_documents([write(tmp_path / "alpaca.json", json.dumps(records))])
    assert [document.text for document in documents] == [ALPACA, ALPACA_WITHOUT_INPUT]
    assert [[document.text[slice(*span)] for span in document.learned] for document in documents] == [["4"], ["5"]]


def test_fields_that_the_alpaca_format_cannot_have_are_a_bad_record(tmp_path, caplog):
    good = {"instruction": "a", "output": "b", "history": [], "system": ""}
    bad = good | {"history": [["earlier", "turn"]]}
    assert len(read_documents([write(tmp_path / "a.json", json.dumps([good, bad]))])) == 1
    assert "a.json:2 has a history in addition to its instruction, which is not read" in caplog.text


def test_long_fields_of_a_table_are_read(tmp_path):
    text = "word " * 100_000
    assert read_documents([write(tmp_path / "a.csv", f"text\n{text}\n")])[0].text == text


def test_bad_rows_of_a_table_are_named(tmp_path, caplog):
    rows = [b"prompt,completion", b"a,b", b"a", b"a,b,c", b"caf\xe9,b", b"c,d", b"", b"e,f", b"g,h"]
    path = write(tmp_path / "a.csv", b"\n".join(rows))
    assert [document.text for document in read_documents([path])] == ["ab", "cd", "ef", "gh"]
    assert f"skipped 3 bad records of 7 of {path}: {path}:2 has 1 values for 2 columns" in caplog.text
    assert f"{path}:3 has 3 values for 2 columns; {path}:4 is not UTF-8" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("package.json", '{"name": "x", "version": "1"}', "has the fields name, version, none of which is read"),
        ("a.json", '[{"question": "a", "answer": "b"}]', "has the fields question, answer, none of which is read"),
        ("a.json", '{"data": [{"text": "a"}]}', "has the fields data, none of which is read"),
        ("a.json", "[1, 2]", "has no records"),
        ("a.json", "// a comment\n{}", "is not JSON (Expecting value at line 1, column 1)"),
        ("a.json", b'{"text": "caf\xe9"}', "is not UTF-8"),
        ("a.json", "[" * 100_000, "is not readable JSON"),
        ("a.csv", "question,answer\na,b\n", "has the columns question, answer, none of which is read"),
        ("a.tsv", "text,completion\na,b\n", "has the columns text,completion, none of which is read"),
        ("a.csv", "text,text\na,b\n", "has a duplicate column name"),
        ("a.csv", "", "has the columns none, none of which is read"),
        ("a.yaml", "- text: a\n", "is YAML; write its records as .jsonl"),
        ("a.YML.gz", gzip.compress(b"text: a", mtime=0), "is YAML; write its records as .jsonl"),
        ("a.ipynb", "{}", "is a notebook; export it"),
    ],
)
def test_data_without_records_are_refused_by_name_and_left_out_of_folders(tmp_path, caplog, name, content, said):
    path = write(tmp_path / "folder" / name, content)
    line = refusal([path])
    assert line.startswith(f"{path} {said}")
    assert line.endswith("(to train on it as plain text, rename it to .txt)")
    assert "has no text among its 1 files" in refusal([tmp_path / "folder"])
    write(tmp_path / "folder/b.py", "code")
    caplog.clear()
    assert [document.text for document in read_documents([tmp_path / "folder"])] == ["code"]
    assert (
        f"omitted data files of {tmp_path / 'folder'} that have no records: 1 .{name.split('.')[1].lower()}; "
        in caplog.text
    )


def test_files_left_out_of_a_folder_are_counted_by_suffix_in_one_line(tmp_path, caplog):
    for name in ("a/package.json", "tsconfig.json", "b/c.yaml", "d.csv"):
        write(tmp_path / name, '"name"\n')
    write(tmp_path / "e.json", '[{"text": "read"}]')
    assert [document.text for document in read_documents([tmp_path])] == ["read"]
    [warning] = caplog.messages
    assert "that have no records: 1 .csv, 2 .json, 1 .yaml; " in warning


def test_a_repository_s_data_files_are_its_text(tmp_path):
    for name in ("repository/.git/HEAD", "repository/package.json", "repository/a.yaml"):
        write(tmp_path / name, "x")
    [document] = read_documents([tmp_path], documents="repository")
    assert document.text == "=== a.yaml ===\nx\n\n=== package.json ===\nx\n"


def test_fields_that_are_not_read_are_counted(tmp_path, caplog):
    records = [{"text": "a", "id": 1, "system": "s"}, {"text": "b", "id": 2, "system": None, "tags": []}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records)))
    read_documents([path])
    assert caplog.messages == [f"fields of records of {path} that are not read: id (of 2), system (of 1)"]


def test_links_to_folders_are_followed_once(tmp_path, caplog):
    write(tmp_path / "elsewhere/a.txt", "a")
    write(tmp_path / "elsewhere/deep/b.txt", "b")
    folder = tmp_path / "folder"
    write(folder / "c.txt", "c")
    for name, target in {
        "linked": tmp_path / "elsewhere",
        "again": tmp_path / "elsewhere",
        "itself": folder,
        "above": tmp_path,
        "z/up": folder,
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target, target_is_directory=True)
    (tmp_path / "elsewhere/back").symlink_to(folder, target_is_directory=True)
    caplog.set_level("INFO", logger="lcjax.data")
    assert [document.text for document in read_documents([folder])] == ["c", "a", "b"]
    assert f"{folder / 'itself'} links to a folder that contains it, and is not followed" in caplog.text
    assert f"{folder / 'linked'} is reached twice and read once" in caplog.text


@pytest.mark.parametrize("path", ["", " "])
def test_an_empty_path_is_refused(path):
    assert refusal([path]) == f"--data {path!r} is an empty path; give a file or folder, or . for the current one"
