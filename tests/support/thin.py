"""Parametrizations: `make test` runs a representative part, and `make test-all` runs everything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[Any], in_every_run: Callable[[Any], bool]) -> list[Any]:
    """Returns the cases, with all marked slow except those that `in_every_run` selects."""
    return [case if in_every_run(case) else _slow(case) for case in cases]


def _slow(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)
