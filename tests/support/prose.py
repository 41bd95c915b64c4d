"""Finds the lines of prose in Python files and Markdown pages, and those that are too wide."""

from __future__ import annotations

import ast
import io
import re
import tokenize

COLUMNS = 100
# Lines that cannot be wrapped: tables, pictures, provenance of measurements, formulas and diagrams.
_UNBREAKABLE = ("|", "![", "- raw:", "- command:", "- machine:", "- versions:", "    ")
# Comments for tools, which must be on the line that they apply to.
_DIRECTIVE = re.compile(r"#\s*(noqa|fmt:|type:|pyright:|ruff:)")
# Link targets and URLs, which have no spaces.
_ADDRESS = re.compile(r"\]\([^)]*\)|https?://\S+")


def prose_of_python(source: str) -> list[tuple[int, str]]:
    """Returns the numbered lines of a Python file that have a comment or part of a docstring."""
    lines = source.splitlines()
    numbers: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not _DIRECTIVE.match(token.string):
            numbers.add(token.start[0])
    for node in ast.walk(ast.parse(source)):
        # A string as a statement: a docstring, or the description of the name above it.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            numbers |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return [(number, lines[number - 1]) for number in sorted(numbers)]


def prose_of_markdown(text: str) -> list[tuple[int, str]]:
    """Returns the numbered lines of a page that are not in fenced blocks and can be wrapped."""
    lines, fenced = [], False
    for number, line in enumerate(text.splitlines(), 1):
        fenced ^= line.startswith("```")
        if not fenced and not line.startswith(("```", *_UNBREAKABLE)):
            lines.append((number, line))
    return lines


def too_wide(lines: list[tuple[int, str]]) -> list[int]:
    """Returns the numbers of the lines of more than COLUMNS columns, without links' targets."""
    return [number for number, line in lines if len(_ADDRESS.sub("", line)) > COLUMNS]
