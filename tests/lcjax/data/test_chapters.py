"""With --documents folder, the text files of a folder are one document, in natural order."""

import os

import pytest

from lcjax.data import read_documents
from lcjax.data.joining.chapters import joined, natural


def test_numbers_count():
    names = "Chapter10.txt chapter1.txt chapter2.txt 10 9 v1.10 v1.9 a chapter002.txt".split()
    assert (
        sorted(names, key=natural) == "9 10 a chapter1.txt chapter002.txt chapter2.txt Chapter10.txt v1.9 v1.10".split()
    )


def test_texts_are_separated_by_blank_lines():
    assert joined(["One\n\n\n", " \n", "Two", "Three\n"]) == "One\n\nTwo\n\nThree\n"
    assert joined([" ", ""]) == ""


@pytest.fixture
def library(tmp_path):
    files = {
        "emma/chapter10.txt": "ten",
        "emma/chapter2.txt": "two\n",
        "emma/notes/n.txt": "note",
        "emma/rows.jsonl": '{"text": "a row"}\n{"text": "another"}\n',
        "emma/settings.json": "{}",
        "emma/cover.png": "\0",
        "blank/x.txt": "\n",
        "letter.txt": "dear",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def test_a_folder_is_a_document_and_records_are_separate(library, caplog):
    documents = read_documents([library, library / "letter.txt"], documents="folder")
    assert [(os.path.relpath(document.name, library), document.text) for document in documents] == [
        (".", "dear"),
        ("emma/rows.jsonl:1", "a row"),
        ("emma/rows.jsonl:2", "another"),
        ("emma", "two\n\nten"),
        ("emma/notes", "note"),
    ]
    assert "skipped 1 files" in caplog.text
    assert "1 .json" in caplog.text


def test_a_file_that_is_given_is_a_document(library):
    assert [d.text for d in read_documents([library / "emma/chapter2.txt"], documents="folder")] == ["two\n"]
