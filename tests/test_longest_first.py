"""The list of the longest test files names files that exist."""

from __future__ import annotations

from tests.support.longest_first import LONGEST, ROOT, place_of


def test_each_is_a_file_and_is_named_once():
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)


def test_every_other_file_comes_after_them():
    assert [place_of(ROOT / name) for name in LONGEST] == list(range(len(LONGEST)))
    assert place_of(ROOT / "tests" / "test_longest_first.py") == len(LONGEST)
