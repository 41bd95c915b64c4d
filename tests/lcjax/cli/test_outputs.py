"""Checks of a command's output files (`lcjax.cli.outputs.check_outputs`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcjax.cli.outputs import check_outputs, output_file, written_atomically
from lcjax.errors import InputError


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "books" / "a.txt"
    path.parent.mkdir()
    path.write_text("a text that nobody wants to lose")
    return path


@pytest.mark.parametrize("read", ["books/a.txt", "books", "link"])
def test_an_output_cannot_replace_an_input(text, monkeypatch, read):
    """`lcjax.tokens a.txt --json a.txt` used to overwrite the text."""
    monkeypatch.chdir(text.parent.parent)
    text.parent.joinpath("../link").symlink_to("books/a.txt")
    with pytest.raises(InputError, match=r"--json books/a.txt would replace an input file, of"):
        check_outputs([read], json="books/a.txt")


def test_other_outputs_may_be_overwritten(text, tmp_path):
    (tmp_path / "figures.json").write_text("{}")
    check_outputs([text, text.parent, "", "no/such/folder"], json=str(tmp_path / "figures.json"))
    check_outputs([text.parent], json=str(text.parent / "new.json"), plot=None)


@pytest.mark.parametrize("context", [written_atomically, output_file])
def test_a_file_is_replaced_at_the_end(tmp_path, context):
    path = tmp_path / "figures.json"
    path.write_text("old")
    with context(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".json"  # matplotlib chooses the format by it
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def fail_after_writing(path: Path) -> None:
    path.write_text("half of the new text")
    raise ZeroDivisionError


@pytest.mark.parametrize("context", [written_atomically, output_file])
def test_after_an_error_the_old_file_is_still_there(tmp_path, context):
    path = tmp_path / "figures.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), context(path) as temporary:
        fail_after_writing(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_regular_file_is_written_directly():
    with written_atomically(Path("/dev/null")) as path:
        path.write_text("anything")
    assert path == Path("/dev/null")


def test_a_failure_to_write_is_an_input_error_only_for_a_named_output(tmp_path):
    path = tmp_path / "missing" / "figures.json"
    message = r"figures.json cannot be written \(No such file or directory\); check the path"
    with pytest.raises(InputError, match=message), output_file(path) as temporary:
        temporary.write_text("new")
    with pytest.raises(FileNotFoundError), written_atomically(path) as temporary:
        temporary.write_text("new")
