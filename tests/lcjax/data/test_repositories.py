import os

import pytest

from lcjax.data import read_documents
from lcjax.errors import InputError


@pytest.fixture
def checkouts(tmp_path):
    files = {
        "first/.git/HEAD": "ref",
        "first/setup.py": "import b\n",
        "first/b.py": "x = 1",
        "first/lib/c.py": "y = 2\n",
        "first/lib/rows.jsonl": '{"a": 1}\n',
        "first/lib/sub/.git": "gitdir: elsewhere",
        "first/lib/sub/d.py": "z = 3\n",
        "first/__pycache__/no.py": "no",
        "first/image.png": "\0",
        "first/empty.py": "\n",
        "group/second/.hg/store": "no",
        "group/second/e.py": "e = 5\n",
        "group/notes.txt": "by itself",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


FIRST = """=== b.py ===
x = 1

=== setup.py ===
import b

=== lib/c.py ===
y = 2

=== lib/rows.jsonl ===
{"a": 1}

=== lib/sub/d.py ===
z = 3
"""


def test_a_repository_is_one_document_of_paths_and_files(checkouts, caplog):
    documents = read_documents([checkouts], documents="repository")
    assert [(os.path.relpath(document.name, checkouts), document.text) for document in documents] == [
        ("first", FIRST),
        ("group/notes.txt", "by itself"),
        ("group/second", "=== e.py ===\ne = 5\n"),
    ]
    assert (
        f"skipped 1 files of {checkouts} that are not UTF-8 text, first {checkouts / 'first/image.png'}" in caplog.text
    )


def test_a_folder_without_any_repository_is_one(checkouts):
    plain = checkouts / "plain"
    (plain / "sub").mkdir(parents=True)
    (plain / "c.py").write_text("y = 2\n")
    (plain / "sub/e.py").symlink_to(checkouts / "group/second/e.py")
    first, second = read_documents([checkouts / "group/second", plain], documents="repository")
    assert "e = 5" in first.text
    # e.py was read with the first.
    assert (second.name, second.text) == (str(plain), "=== c.py ===\ny = 2\n")


def test_by_default_a_file_is_a_document(checkouts):
    names = [os.path.relpath(document.name, checkouts) for document in read_documents([checkouts / "group"])]
    assert names == ["group/notes.txt", "group/second/e.py"]


def test_an_unknown_unit_is_refused(checkouts):
    with pytest.raises(InputError, match="documents='repo' is unknown; did you mean repository"):
        read_documents([checkouts], documents="repo")
