"""The number of invalid inputs in the README is not too large."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.bad_inputs import cases

README = Path(__file__).parents[3] / "README.md"


def test_the_readme_states_at_most_the_number_of_invalid_inputs():
    stated = re.search(r"([\d,]+) invalid inputs", README.read_text(encoding="utf-8"))
    assert stated is not None
    assert 300 <= int(stated.group(1).replace(",", "")) <= len(set(cases()))
