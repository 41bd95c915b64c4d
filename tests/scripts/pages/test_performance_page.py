"""docs/performance.md and docs/context.png match their sources, and no source is unused."""

from __future__ import annotations

import json
import re
import shutil

import context_picture
import performance_page
from lcjax_scripts.pages import measured_tables

DOCS = performance_page.DOCS
MEASURED = DOCS / "measured"


def test_the_page_is_what_the_raw_files_say():
    assert performance_page.main(["--check"]) == 0


def test_another_figure_in_a_raw_file_is_found(tmp_path, monkeypatch, capsys):
    docs = shutil.copytree(DOCS, tmp_path / "docs")
    raw = docs / "measured" / "h100-2026-11-27-step-393216.csv"
    raw.write_text(raw.read_text().replace("518.833", "618.833"))
    assert "| 619 |" in performance_page.page(docs)
    monkeypatch.setattr(performance_page, "PAGE", docs / "performance.md")
    (docs / "performance.md").write_text("stale")
    assert performance_page.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert performance_page.main([]) == 0
    assert performance_page.main(["--check"]) == 0


def test_every_raw_file_is_linked_from_a_page():
    pages = "\n".join(
        path.read_text(encoding="utf-8") for path in (*DOCS.glob("*.md"), DOCS.parent / "CONTRIBUTING.md")
    )
    unused = [path.name for path in MEASURED.iterdir() if f"measured/{path.name}" not in pages]
    assert unused == []


def test_every_question_states_the_source_of_its_figures():
    sections = performance_page.page().split("\n## ")[1:]
    assert len(sections) >= 12
    for section in sections:
        for name in ("machine", "versions", "commit", "command", "raw"):
            assert re.search(rf"^- {name}: \S", section, re.MULTILINE), (name, section.splitlines()[0])
        assert len(re.findall(r"^\| --- \|", section, re.MULTILINE)) == 1, section.splitlines()[0]


def test_the_first_file_with_a_figure_is_shown_and_a_later_one_is_marked():
    row = {"attention": "auto", "tokens": "8", "tokens_per_second": "", "peak_bytes": "", "error": "RESOURCE_EXHAUSTED"}
    measured = {**row, "tokens_per_second": "1234.4", "peak_bytes": str(2**30), "error": ""}
    cell = measured_tables.best_cell
    assert cell([[row], [measured]], tokens="8", attention="pallas") == "1,234 (1.0) *"
    assert cell([[row]], tokens="8", attention="pallas") == "out of memory"
    assert cell([[measured]], tokens="9") == ""


def test_the_picture_shows_the_figures_of_the_table(tmp_path):
    rows = json.loads((DOCS / "context.json").read_text())["rows"]
    shown = context_picture.figures(rows)
    table = (DOCS / "context.md").read_text()
    for size, ours, theirs in shown:
        assert re.search(
            rf"^\| llama-3.1-8b, nf4.*\| {size} GB,.*\*\*{ours:,}\*\*.*Unsloth {theirs:,}", table, re.MULTILINE
        )
    texts = {text.get_text() for text in context_picture.draw(rows).axes[0].texts}
    assert texts == {f"{tokens:,}" for row in shown for tokens in row[1:]}
    assert context_picture.main(["--output", str(tmp_path / "context.png")]) == 0
    assert (tmp_path / "context.png").stat().st_size > 0
