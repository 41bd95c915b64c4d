"""Triton's kernels on the CPU: interpreted, whatever was imported before."""

from __future__ import annotations

import sys

import pytest


def import_interpreted() -> None:
    """Imports triton and triton_ref such that `triton.jit` interprets.

    Triton decides that at import, and a test file collected earlier may have imported it to compile (PEFT does, by way of
    bitsandbytes, and uses nothing of it here). The variable is set for these tests only: others start processes of their own.
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
    """Parts of triton that are imported on first use look at the variable then."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
