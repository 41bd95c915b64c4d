"""Interprets Triton's kernels on the CPU, even if Triton was imported before."""

from __future__ import annotations

import sys

import pytest


def import_interpreted() -> None:
    """Imports triton and triton_ref so that `triton.jit` interprets.

    Triton decides this at import, and a test file that was collected earlier may have imported it
    in compiling mode (PEFT does so through bitsandbytes, without using it). The variable is set
    only for these tests, because others start subprocesses.
    """
    compiling = [name for name in sys.modules if name.startswith("triton.") and not name.startswith("triton._C")]
    for name in ["triton", *compiling]:
        sys.modules.pop(name, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        import triton_ref  # noqa: F401


import_interpreted()


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Some parts of triton are imported on first use, and read the variable then."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
