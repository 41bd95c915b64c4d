"""Writes docs/performance.md from the raw files in docs/measured.

    python scripts/performance_page.py          # writes the page
    python scripts/performance_page.py --check  # exits with 1 if the page is out of date

docs/measured/questions.toml lists the sections. For each question it names the raw files, the
machine, the versions, the commit, the command, and the function of
`lcjax_scripts.pages.measured_tables` that makes the table.
"""

from __future__ import annotations

import dataclasses
import sys
import tomllib
from pathlib import Path
from typing import Any

import tyro

from lcjax_scripts.pages import measured_tables

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "performance.md"
HEAD = """\
# Performance

Written by `scripts/performance_page.py` from the raw files in [measured/](measured); edit those or
[questions.toml](measured/questions.toml), not this page. One question a section, with the newest
measurement that answers it. What older measurements said, and what was tried and given up, is in
[log.md](log.md). (GPU) means that the command needs one.

Measured elsewhere: the longest context of each GPU in [context.md](context.md), exact resume in
[resume.md](resume.md), what long context gains in [evaluation.md](evaluation.md), the kinds of RoPE
in [rope.md](rope.md).
"""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Write docs/performance.md from docs/measured, or check that it is up to date."""

    check: bool = False
    """Write nothing; exit with 1 if the page differs."""


def page(docs: Path = DOCS) -> str:
    """Returns the text of docs/performance.md."""
    listed = tomllib.loads((docs / "measured" / "questions.toml").read_text(encoding="utf-8"))
    sections = [_section(question, listed, docs / "measured") for question in listed["question"]]
    return "\n".join([HEAD, *sections])


def _section(question: dict[str, Any], machines: dict[str, Any], measured: Path) -> str:
    """Returns a question's heading, the source of its figures, the table and the remarks."""
    shared = machines.get(question["machine"], {"machine": question["machine"]})
    about = {**shared, **{key: value for key, value in question.items() if key != "machine"}}
    table = getattr(measured_tables, f"{about['table']}_table")([measured / name for name in about["files"]])
    gpu = " (GPU)" if about.get("needs_gpu") else ""
    links = ", ".join(f"[{name}](measured/{name})" for name in about["files"])
    front = [
        f"- machine: {about['machine']}",
        f"- versions: {about['versions']}",
        f"- commit: {about['commit']}; {about['date']}",
        f"- command: `{about['command']}`{gpu}",
        f"- raw: {links}",
    ]
    parts = [f"## {about['title']}", about["text"].strip(), "\n".join(front), table, about.get("after", "").strip()]
    return "\n\n".join(part for part in parts if part) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Writes the page, or compares it with the file; returns the exit code."""
    arguments = tyro.cli(Arguments, args=argv)
    text = page()
    if not arguments.check:
        PAGE.write_text(text, encoding="utf-8")
    elif text != PAGE.read_text(encoding="utf-8"):
        print("docs/performance.md is out of date; run python scripts/performance_page.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
