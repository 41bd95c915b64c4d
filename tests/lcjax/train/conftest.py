"""Fixtures for runs of lcjax.train on the tiny Llama and its text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import SHORT, finish, start


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
    code, output = finish(start([*short, "--output-dir", "run"], folder, cache))
    assert code == 0, output
    return folder / "run"
