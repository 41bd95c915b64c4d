"""Checks of a command's output files (`lcjax.cli.outputs.check_outputs`)."""

from __future__ import annotations

import pytest

from lcjax.cli.outputs import check_outputs
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
    with pytest.raises(InputError, match=r"--json books/a.txt would replace a file that is read"):
        check_outputs([read], json="books/a.txt")


def test_other_outputs_may_be_overwritten(text, tmp_path):
    (tmp_path / "figures.json").write_text("{}")
    check_outputs([text, text.parent, "", "no/such/folder"], json=str(tmp_path / "figures.json"))
    check_outputs([text.parent], json=str(text.parent / "new.json"), plot=None)
