"""The README states how many wrong inputs there are, and not more than that."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.bad_inputs import cases

README = Path(__file__).parents[3] / "README.md"


def test_the_readme_states_no_more_wrong_inputs_than_there_are():
    stated = re.search(r"([\d,]+) wrong inputs", README.read_text(encoding="utf-8"))
    assert stated is not None
    assert 300 <= int(stated.group(1).replace(",", "")) <= len(set(cases()))
