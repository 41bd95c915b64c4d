"""lcjax.cli.caches: the place of a cache, digests of its keys, and versions of packages."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from lcjax.cli.caches import digest_of, installed_version, user_cache


def test_the_place_of_a_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache("plan") == tmp_path / "lcjax" / "plan"
    for unset in ("", None):
        monkeypatch.delenv("XDG_CACHE_HOME") if unset is None else monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert user_cache("plan") == Path.home() / ".cache" / "lcjax" / "plan"


def test_a_digest_depends_on_values_and_not_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert len({digest_of(x) for x in ({"a": 1}, {"a": 2}, {"b": 1}, [1], "1", 1)}) == 6
    assert len(digest_of(None)) == 32


def test_versions_of_packages():
    assert installed_version("jax") == version("jax")
    assert installed_version("a-package-that-nobody-installs") is None
