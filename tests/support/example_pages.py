"""The examples: their folders, the commands of their pages, and the output that the pages quote."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from tests.support.document_commands import ROOT, Command, commands

FOLDERS = sorted(path.parent for path in ROOT.glob("examples/*/README.md"))
PAGES = [ROOT / "examples" / "README.md", *(folder / "README.md" for folder in FOLDERS)]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Lines and corners of tables.
_FRAME = re.compile(r"[│┃┌┐└┘─┬┴]+")


def commands_of(page: Path) -> list[Command]:
    """The commands of a page, in order."""
    return commands(page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix())


def quoted_plans(page: Path) -> list[tuple[list[str], list[str]]]:
    """(the words after `lcjax plan`, the lines that the page quotes of its output), in order.

    The output is in the block after that of the command.
    """
    blocks = [block.group(2) for block in _BLOCK.finditer(page.read_text(encoding="utf-8"))]
    return [
        (Command("", 0, before.strip()).words[2:], content_of(after))
        for before, after in itertools.pairwise(blocks)
        if before.startswith("lcjax plan")
    ]


def content_of(output: str) -> list[str]:
    """The lines of an output without the frames of tables and repeated spaces."""
    lines = (" ".join(_FRAME.sub(" ", line).split()) for line in output.splitlines())
    return [line for line in lines if line]
