"""The test files that take longest, in the order in which pytest-xdist gives them to its workers."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

# From about 60 to 10 seconds of CPU time. The order decides only how long the last worker is alone.
LONGEST = """
""".split()


def place_of(path: Path) -> int:
    """The place of a test file in the order: the longest ones first, and then all others."""
    name = path.relative_to(ROOT).as_posix()
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)
