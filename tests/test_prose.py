"""Prose is at most 100 columns wide: comments, docstrings and Markdown."""

from __future__ import annotations

import pytest

from tests.support.document_commands import DOCUMENTS, ROOT
from tests.support.example_pages import PAGES
from tests.support.prose import COLUMNS, prose_of_markdown, prose_of_python, too_wide

FOLDERS = ("lcjax", "scripts", "tests", "triton_ref")


@pytest.mark.parametrize("folder", FOLDERS)
def test_comments_and_docstrings_are_narrow(folder):
    found = {
        str(path.relative_to(ROOT)): too_wide(prose_of_python(path.read_text(encoding="utf-8")))
        for path in (ROOT / folder).rglob("*.py")
    }
    assert len(found) > 0
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_pages_are_narrow():
    found = {
        str(path.relative_to(ROOT)): too_wide(prose_of_markdown(path.read_text(encoding="utf-8")))
        for path in [*DOCUMENTS, *PAGES]
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


WIDE = "word " * 20 + "."


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (f"# {WIDE}", [1]),
        (f"x = 1\ny = 2  # {WIDE}", [2]),
        (f'"""Summary.\n\n{WIDE}\n"""', [3]),
        (f'def f():\n    """{WIDE}"""', [2]),
        (f'class C:\n    x: int = 1\n    """{WIDE}"""', [3]),
        (f'x = "{WIDE}"', []),
        (f"x = {'1 + ' * 30}1  # noqa: E501", []),
        (f"# https://example.org/{'a' * 100}", []),
        (f"# {WIDE[: COLUMNS - 2]}", []),
        (f"# {WIDE[: COLUMNS - 2]}.", [1]),
    ],
)
def test_a_wide_comment_or_docstring_is_found(source, found):
    assert too_wide(prose_of_python(source)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"# Title\n\n{WIDE}", [3]),
        (f"- {WIDE}", [1]),
        (f"```\n{WIDE}\n```\n{WIDE}", [4]),
        (f"| {WIDE} |", []),
        (f"    {WIDE}", []),
        (f"[a page](docs/{'a' * 100}.md)", []),
        (f"{WIDE} [a page](docs/page.md)", [1]),
    ],
)
def test_a_wide_line_of_a_page_is_found(text, found):
    assert too_wide(prose_of_markdown(text)) == found
