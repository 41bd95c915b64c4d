"""Checks the text of README.md, CONTRIBUTING.md, docs/*.md and the examples, not their commands."""

from __future__ import annotations

import json
import re

import pytest

import context_picture
from tests.support.document_commands import DOCUMENTS, ROOT
from tests.support.example_pages import PAGES
from tests.support.prose import prose_of_markdown

NAMES = [path.relative_to(ROOT).as_posix() for path in [*DOCUMENTS, *PAGES]]


@pytest.mark.parametrize("name", NAMES)
def test_no_sentence_has_six_figures(name):
    """A list item ends a sentence, as a period does. Dates, versions and code do not count."""
    text = "\n".join(line for _, line in prose_of_markdown((ROOT / name).read_text(encoding="utf-8")))
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|\d{4}-\d\d-\d\d|arXiv [\d.]+", "", text)
    for sentence in re.split(r"[.:;?!]\s|\n\s*\n|\n\s*[-*#]|\n\d+\. ", text):
        figures = re.findall(r"(?<![\w.,])\d[\d,]*(?:\.\d+)?", sentence)
        assert len(figures) < 6, " ".join(sentence.split())


def test_the_readme_is_read_in_five_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_readme_quotes_the_figures_of_the_picture():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for _, ours, theirs in context_picture.figures(json.loads((ROOT / "docs/context.json").read_text())["rows"]):
        assert f"{ours:,}" in readme
        assert f"{theirs:,}" in readme


def test_links_lead_somewhere():
    """Relative links lead to existing files."""
    for name in NAMES:
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", (ROOT / name).read_text(encoding="utf-8")):
            assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


@pytest.mark.parametrize("folder", ["lcjax", "scripts"])
def test_the_map_has_every_file_and_folder(folder):
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    there = [path for path in (ROOT / folder).iterdir() if path.name not in ("__init__.py", "__pycache__")]
    named = {path.name for path in there if f"`{path.name}{'/' if path.is_dir() else ''}`" in text}
    assert {path.name for path in there} - named == set()


def test_files_named_in_the_architecture_exist():
    """Checks names that start with a folder of lcjax, such as `data/reading/files.py`."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_0-9]+/[a-z_0-9/]*(?:\.py|/))`", text)
    assert len(named) > 20
    missing = [name for name in named if not any((ROOT / base / name).exists() for base in ("", "lcjax"))]
    assert missing == []


def test_the_order_of_imports_is_the_one_that_is_tested():
    from tests.lcjax import test_imports

    assert test_imports.ORDER.strip() in (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
