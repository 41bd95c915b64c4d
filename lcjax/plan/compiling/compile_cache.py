"""Caches the compiler's results on disk, so that the same step is not compiled twice.

The key of a result consists of its inputs, the versions of JAX and its compiler, and the source of
lcjax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from lcjax.cli.outputs import written_atomically

_COMPILERS = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc")

Result = TypeVar("Result")


def cached_result(inputs: Any, parse: Callable[[dict[str, Any]], Result], compute: Callable[[], Result]) -> Result:
    """The result for some inputs: read from `cache_folder()`, or computed and written there.

    Args:
      inputs: JSON of everything that the result depends on, except for compiler and source.
      parse: makes the result, a dataclass, from the JSON of its `dataclasses.asdict`; raises
        ValueError, KeyError or TypeError if the JSON is not that of a result.
      compute: computes the result, which takes long. An error that it raises is not cached.
    """
    path = cache_folder() / f"{_key(inputs)}.json"
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        result = compute()
    _write(path, json.dumps(dataclasses.asdict(result)))  # pyright: ignore[reportArgumentType]
    return result


def cache_folder() -> Path:
    """The folder of the cache: lcjax/plan in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lcjax" / "plan"


def _key(inputs: Any) -> str:
    facts = {
        "inputs": inputs,
        "compilers": {name: _version(name) for name in _COMPILERS},
        "source": source_digest(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@functools.cache
def source_digest() -> str:
    """A digest of every file of lcjax: after any change of the source, old results are not used."""
    package = Path(__file__).parents[2]
    files = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".txtpb"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _write(path: Path, text: str) -> None:
    """Writes the file. If that is not possible, nothing is cached."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_atomically(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
