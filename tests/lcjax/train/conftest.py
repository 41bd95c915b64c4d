"""Fixtures for runs of lcjax.train on the tiny Llama and its text."""

from __future__ import annotations

from pathlib import Path

import pytest

from lcjax.train.__main__ import main
from tests.support.processes import SHORT


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """The user's cache folder, which shares compiled steps between runs and processes."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def _cache_in_use(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield


@pytest.fixture(scope="session")
def short(model_dir, data_dir) -> list[str]:
    """The flags of a run of 4 steps that saves and evaluates after every second one.

    --output-dir must be added.
    """
    return ["--model", str(model_dir), "--data", str(data_dir), *SHORT]


@pytest.fixture(scope="session")
def finished(short, cache, tmp_path_factory) -> Path:
    """The folder of such a run without interruptions. Tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(cache))
        assert main([*short, "--output-dir", "run"]) == 0
    return folder / "run"
